#!/bin/sh
# Builds the programs of Kubernetes that tests of the Helm chart use, from their Go modules, into
# .venv/kube: Debian has no packages of them. Needs Go. Does only what is missing.
#
#   tools/kube_tools.sh helm              two minutes on two cores; `make test` uses it
#   tools/kube_tools.sh kube-apiserver    and kube-controller-manager: longer; `make proof` uses them
set -eu
cd "$(dirname "$0")/.."
out=$PWD/.venv/kube
helm=3.22.0
kubernetes=1.37.2
minor=${kubernetes#1.} minor=${minor%%.*}

export CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false"

build_helm() {
    at=helm.sh/helm/v3/pkg
    # Without these it takes every cluster that it is not connected to for a very old one.
    GOBIN=$out go install -ldflags "-s -w \
        -X $at/chartutil.k8sVersionMajor=1 -X $at/chartutil.k8sVersionMinor=$minor \
        -X $at/lint/rules.k8sVersionMajor=1 -X $at/lint/rules.k8sVersionMinor=$minor" \
        "helm.sh/helm/v3/cmd/helm@v$helm"
}

# Kubernetes' module replaces its parts by folders that the module does not contain. Each is a module
# of its own, too, under the number that belongs to it.
build_kubernetes() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    go mod download "k8s.io/kubernetes@v$kubernetes"
    mod=$(go env GOMODCACHE)/cache/download/k8s.io/kubernetes/@v/v$kubernetes.mod
    {
        echo "module polder.eu/kubetools"
        grep '^go ' "$mod"
        echo "require k8s.io/kubernetes v$kubernetes"
        grep -oE 'k8s.io/[a-z-]+ => \./staging|k8s.io/[a-z-]+ v0\.0\.0$' "$mod" | cut -d' ' -f1 |
            sort -u | while read -r part; do
            echo "replace $part => $part v0.${kubernetes#1.}"
        done
    } >go.mod
    printf 'package tools\n\nimport (\n%s)\n' "$(printf '\t_ "k8s.io/kubernetes/cmd/%s"\n' "$@")
" >tools.go
    go mod tidy -e 2>/dev/null || true # a program cannot be imported; what it needs is found all the same
    at=k8s.io/component-base/version
    for program in "$@"; do
        go build -ldflags "-s -w -X $at.gitVersion=v$kubernetes -X $at.gitMajor=1 -X $at.gitMinor=$minor" \
            -o "$out/$program" "k8s.io/kubernetes/cmd/$program"
    done
}

command -v go >/dev/null 2>&1 || { echo "kube_tools: needs Go" >&2; exit 1; }
mkdir -p "$out"
[ -x "$out/${1:?which program}" ] && exit 0
echo "==> building $1 from its Go module, which takes some minutes once" >&2
case "$1" in
helm) build_helm ;;
kube-apiserver) build_kubernetes kube-apiserver kube-controller-manager ;;
*) echo "kube_tools: unknown program $1" >&2; exit 2 ;;
esac
