{{/* What the schema cannot say, or not in words that help. Every template that makes pods asks. */}}
{{- define "polder.validate" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- $full := include "polder.fullname" . -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]{0,36}[a-z0-9])?$" $full) -}}
{{- $problems = append $problems (printf "fullnameOverride: %s cannot be what names of Services begin with; give at most 38 lower-case letters, digits and hyphens, a letter first" $full) -}}
{{- end -}}
{{- if not $v.image.repository -}}
{{- $problems = append $problems "image.repository: say where your image is, such as registry.example/polder/orchestrator; there is no default (docs/helm.md)" -}}
{{- end -}}
{{- if not $v.image.digest -}}
{{- $problems = append $problems "image.digest: images are named by digest, sha256:...; the release and your registry tell it" -}}
{{- end -}}
{{- if eq $v.store.type "sqlite" -}}
{{- if gt (int $v.replicas) 1 -}}
{{- $problems = append $problems (printf "replicas: %d members cannot share one SQLite file; keep 1, or set store.type=etcd and move with `edge-orchestrator migrate`" (int $v.replicas)) -}}
{{- end -}}
{{- if not $v.persistence.enabled -}}
{{- $problems = append $problems "persistence.enabled: SQLite without a volume would forget everything with its pod; keep it on, or set store.type=etcd" -}}
{{- end -}}
{{- if or $v.store.etcd.endpoints $v.store.etcd.existingSecret -}}
{{- $problems = append $problems "store.etcd: is given, and store.type is sqlite; set store.type=etcd" -}}
{{- end -}}
{{- if $v.advertise.members -}}
{{- $problems = append $problems "advertise.members: a member with SQLite has no others that could dial it; set store.type=etcd" -}}
{{- end -}}
{{- if $v.memberService.enabled -}}
{{- $problems = append $problems "memberService.enabled: a member with SQLite has no others that could dial it; set store.type=etcd" -}}
{{- end -}}
{{- else if $v.store.etcd.endpoints -}}
{{- if not $v.store.etcd.existingSecret -}}
{{- $problems = append $problems "store.etcd.existingSecret: an etcd of your own is spoken to with certificates only; name the Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- else -}}
{{- if $v.store.etcd.existingSecret -}}
{{- $problems = append $problems "store.etcd.existingSecret: is for the etcd at store.etcd.endpoints, and there are none; the bundled one gets certificates of its own" -}}
{{- end -}}
{{- if or (not $v.etcd.image.repository) (not $v.etcd.image.digest) -}}
{{- $problems = append $problems "etcd.image: the bundled etcd needs repository and digest; or give store.etcd.endpoints" -}}
{{- end -}}
{{- end -}}
{{- if and $v.advertise.members (ne (len $v.advertise.members) (int $v.replicas)) -}}
{{- $problems = append $problems (printf "advertise.members: has %d addresses for %d members; give one for each, in order" (len $v.advertise.members) (int $v.replicas)) -}}
{{- end -}}
{{- $service := $v.service -}}
{{- if eq (int $service.port) (int $service.joinPort) -}}
{{- $problems = append $problems (printf "service.joinPort: is %d, as service.port; give each its own" (int $service.port)) -}}
{{- end -}}
{{- $onlyFor := dict "nodePort" "ClusterIP" "joinNodePort" "ClusterIP" "externalTrafficPolicy" "ClusterIP" "loadBalancerClass" "ClusterIP NodePort" "loadBalancerSourceRanges" "ClusterIP NodePort" -}}
{{- range $key, $unfit := $onlyFor -}}
{{- if and (get $service $key) (has $service.type (splitList " " $unfit)) -}}
{{- $problems = append $problems (printf "service.%s: a Service of type %s has none; set service.type=LoadBalancer%s" $key $service.type (ternary " or NodePort" "" (eq $unfit "ClusterIP"))) -}}
{{- end -}}
{{- end -}}
{{- range $key, $labels := dict "podLabels" $v.podLabels "podAnnotations" $v.podAnnotations "metrics.serviceMonitor.labels" $v.metrics.serviceMonitor.labels -}}
{{- range $name := keys (default dict $labels) | sortAlpha -}}
{{- if regexMatch "^(app\\.kubernetes\\.io|helm\\.sh|polder\\.eu)/" $name -}}
{{- $problems = append $problems (printf "%s: %s is the chart's own to say" $key $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if has (int $v.metrics.port) (list 7443 7444 7481) -}}
{{- $problems = append $problems (printf "metrics.port: members have something else at %d; choose another, such as 7480" (int $v.metrics.port)) -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.metrics.enabled) -}}
{{- $problems = append $problems "metrics.serviceMonitor.enabled: needs metrics.enabled=true" -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor")) -}}
{{- $problems = append $problems "metrics.serviceMonitor.enabled: this cluster does not know ServiceMonitor; install the Prometheus operator first (helm template: --api-versions monitoring.coreos.com/v1/ServiceMonitor)" -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\n%s\n" (join "\n" $problems)) -}}
{{- end -}}
{{- end -}}
