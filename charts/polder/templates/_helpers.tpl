{{/* Names, labels, images and the parts that all pods share. */}}

{{- define "polder.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "polder.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "polder.labels" -}}
{{ include "polder.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: polder
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "polder.serviceAccountName" -}}
{{- default (include "polder.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Takes the values of an image. */}}
{{- define "polder.image" -}}
{{- printf "%s@%s" .repository .digest -}}
{{- end -}}

{{- define "polder.usesEtcd" -}}
{{- if eq .Values.store.type "etcd" }}true{{ end -}}
{{- end -}}

{{- define "polder.bundledEtcd" -}}
{{- if and (eq .Values.store.type "etcd") (not .Values.store.etcd.endpoints) }}true{{ end -}}
{{- end -}}

{{- define "polder.domain" -}}
{{- printf "%s.svc.%s" .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- define "polder.caSecret" -}}
{{- default (printf "%s-ca" (include "polder.fullname" .)) .Values.ca.existingSecret -}}
{{- end -}}

{{- define "polder.etcdClientSecret" -}}
{{- default (printf "%s-etcd-client" (include "polder.fullname" .)) .Values.store.etcd.existingSecret -}}
{{- end -}}

{{/* host:port of every etcd member, with commas between. */}}
{{- define "polder.etcdEndpoints" -}}
{{- if include "polder.bundledEtcd" . -}}
{{- $full := include "polder.fullname" . -}}
{{- $hosts := list -}}
{{- range $n := until (int .Values.etcd.replicas) -}}
{{- $hosts = append $hosts (printf "%s-etcd-%d.%s-etcd.%s:2379" $full $n $full (include "polder.domain" $)) -}}
{{- end -}}
{{- join "," $hosts -}}
{{- else -}}
{{- join "," .Values.store.etcd.endpoints -}}
{{- end -}}
{{- end -}}

{{- define "polder.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.security.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
{{- end }}
{{- with .Values.security.fsGroup }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "polder.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "polder.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Machines that pods may go to. Takes the values of the component. */}}
{{- define "polder.machines" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where pods go. Takes root, values (of the component) and component. */}}
{{- define "polder.placing" -}}
{{- include "polder.machines" .values }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "polder.selectorLabels" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A rule of a NetworkPolicy: names may be asked for. */}}
{{- define "polder.dialsNames" -}}
- ports: # names
    {{- range .Values.networkPolicy.dnsPorts }}
    - {protocol: UDP, port: {{ int . }}}
    - {protocol: TCP, port: {{ int . }}}
    {{- end }}
{{- end -}}
