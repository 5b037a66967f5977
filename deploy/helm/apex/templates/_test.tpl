{{- define "apex.testContainer" -}}
image: {{ include "apex.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ include "apex.containerSecurity" . }}
resources:
  requests: {cpu: 100m, memory: 512Mi}
  limits: {memory: 1Gi}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- with include "apex.securityMounts" . | trim }}{{ nindent 2 . }}{{ end }}
{{- end -}}
