{{/* orchestrator.toml of one member. Takes root and ordinal. A string in JSON is one in TOML, too. */}}
{{- define "polder.config" -}}
{{- $values := .root.Values -}}
{{- $full := include "polder.fullname" .root -}}
{{- $pod := printf "%s-%d" $full .ordinal -}}
{{- $service := printf "%s.%s" $full (include "polder.domain" .root) -}}
{{- $own := printf "%s.%s-members.%s:7443" $pod $full (include "polder.domain" .root) -}}
{{- $agents := default (list (printf "%s:%d" $service (int $values.service.port))) $values.advertise.agents -}}
{{- $join := default (list (printf "%s:%d" $service (int $values.service.joinPort))) $values.advertise.join -}}
{{- $peer := $own -}}
{{- if gt (len (default list $values.advertise.members)) .ordinal -}}
{{- $peer = index $values.advertise.members .ordinal -}}
{{- end -}}
data_dir = "/var/lib/polder/data"
ca_dir = "/etc/polder/ca"
trust_domain = {{ $values.trustDomain | toJson }}
region = {{ $values.region | toJson }}
member = {{ printf "%s-%s" $values.region $pod | toJson }}
listen = {{ printf "%s:7443" $values.listenHost | toJson }}
join_listen = {{ printf "%s:7444" $values.listenHost | toJson }}
health_listen = {{ printf "%s:7481" $values.listenHost | toJson }}
metrics_listen = {{ ternary (printf "%s:%d" $values.listenHost (int $values.metrics.port)) "" $values.metrics.enabled | toJson }}
advertise = {{ $agents | toJson }}
advertise_join = {{ $join | toJson }}
{{- if $values.location }}
location = {{ $values.location | toJson }}
{{- end }}
{{- if include "polder.usesEtcd" .root }}
advertise_peer = {{ $peer | toJson }}
store = {{ printf "etcd:%s" (include "polder.etcdEndpoints" .root) | toJson }}
etcd_ca = "/etc/polder/etcd/ca.crt"
etcd_cert = "/etc/polder/etcd/tls.crt"
etcd_key = "/etc/polder/etcd/tls.key"
etcd_prefix = {{ $values.store.etcd.prefix | toJson }}
{{- end }}
{{- range $key, $value := $values.settings }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- end -}}
