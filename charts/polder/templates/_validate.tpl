{{/* What the schema cannot say, or not in words that help. Every template that makes pods asks. */}}
{{- define "polder.validate" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
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
