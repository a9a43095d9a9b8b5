{{/* Annotations of what the jobs need: there before each of them, and gone after it. */}}
{{- define "polder.aroundJobs" -}}
helm.sh/hook: pre-install,pre-upgrade,pre-rollback,post-install,post-upgrade,post-rollback
helm.sh/hook-weight: "-5"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* A Job around an install or upgrade. Takes root, name, events, weight and args. */}}
{{- define "polder.job" -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}
  labels:
    {{- include "polder.labels" .root | nindent 4 }}
    app.kubernetes.io/component: job
  annotations:
    helm.sh/hook: {{ .events }}
    helm.sh/hook-weight: {{ .weight | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: 2
  activeDeadlineSeconds: 300
  template:
    metadata:
      labels:
        {{- include "polder.selectorLabels" .root | nindent 8 }}
        app.kubernetes.io/component: job
    spec:
      restartPolicy: Never
      serviceAccountName: {{ include "polder.fullname" .root }}-jobs
      automountServiceAccountToken: true
      enableServiceLinks: false
      securityContext:
        {{- include "polder.podSecurityContext" .root | nindent 8 }}
      {{- include "polder.pullSecrets" .root | nindent 6 }}
      {{- include "polder.machines" .root.Values | nindent 6 }}
      containers:
        - name: job
          image: {{ include "polder.image" .root.Values.image }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args:
            {{- toYaml .args | nindent 12 }}
          resources:
            requests: {cpu: 50m, memory: 64Mi}
            limits: {memory: 256Mi}
          securityContext:
            {{- include "polder.containerSecurityContext" .root | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
      volumes:
        - name: tmp
          emptyDir:
            medium: Memory
            sizeLimit: 16Mi
{{- end -}}
