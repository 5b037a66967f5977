{{/* What all pods have in common. Each takes (dict "root" $ "component" "actor"). */}}

{{- define "apex.podMetadata" -}}
{{- $values := get .root.Values .component -}}
labels:
  # No versions: that of the chart alone must not restart a fleet.
  {{- include "apex.selectorLabels" . | nindent 2 }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "apex.configDigest" . }}
  kubectl.kubernetes.io/default-container: {{ .component }}
  {{- if .root.Values.monitoring.annotations }}
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ include "apex.port" "metrics" | quote }}
  prometheus.io/path: /metrics
  {{- end }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "apex.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
# Addresses are full names: asked for as they are, and not behind each search domain first.
dnsConfig:
  options:
    - {name: ndots, value: "2"}
{{- end -}}

{{- define "apex.podCommon" -}}
{{- $values := get .root.Values .component -}}
serviceAccountName: {{ include "apex.name" . }}
{{ include "apex.podSecurity" .root }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
{{- end -}}

{{/* Soft: on a cluster of one node everything must run there. */}}
{{- define "apex.avoidGpuNodes" -}}
weight: 100
preference:
  matchExpressions:
    {{- range list "nvidia.com/gpu.present" "cloud.google.com/gke-accelerator" "k8s.amazonaws.com/accelerator" "kubernetes.azure.com/accelerator" }}
    - {key: {{ . }}, operator: DoesNotExist}
    {{- end }}
{{- end -}}

{{/* Affinity of all but the learner: off GPU nodes, then what the user says. */}}
{{- define "apex.affinity" -}}
{{- $own := get (get .root.Values .component) "affinity" | default dict -}}
{{- $node := get $own "nodeAffinity" | default dict -}}
{{- $preferred := get $node "preferredDuringSchedulingIgnoredDuringExecution" | default list -}}
{{- $preferred = append $preferred (include "apex.avoidGpuNodes" .root | fromYaml) -}}
{{- $node = mergeOverwrite (deepCopy $node) (dict "preferredDuringSchedulingIgnoredDuringExecution" $preferred) -}}
affinity:
  {{- mergeOverwrite (deepCopy $own) (dict "nodeAffinity" $node) | toYaml | nindent 2 }}
{{- end -}}

{{/* Pods of a node that is gone are replaced after `seconds`. */}}
{{- define "apex.lostNodeTolerations" -}}
- {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: {{ .seconds }}}
- {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: {{ .seconds }}}
{{- end -}}

{{- define "apex.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "apex.container" -}}
{{- $values := get .root.Values .component -}}
name: {{ .component }}
image: {{ include "apex.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ include "apex.containerSecurity" . }}
resources:
  {{- include "apex.resources" . | nindent 2 }}
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- with $values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - {name: config, mountPath: /etc/apex, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- with include "apex.securityMounts" . | trim }}{{ nindent 2 . }}{{ end }}
  {{- with .mounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The learner's GPU is added here, so that resources can be set without knowing of it. */}}
{{- define "apex.resources" -}}
{{- $values := get .root.Values .component -}}
{{- $resources := deepCopy $values.resources -}}
{{- if and (eq .component "learner") $values.gpu.enabled -}}
{{- $gpu := dict $values.gpu.resource 1 -}}
{{- $resources = mergeOverwrite $resources (dict "requests" $gpu "limits" $gpu) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "apex.volumes" -}}
{{- $values := get .root.Values .component -}}
- name: config
  configMap: {name: {{ include "apex.fullname" .root }}-config}
- name: tmp
  emptyDir: {sizeLimit: 512Mi}
{{- with include "apex.securityVolumes" . | trim }}{{ nindent 0 . }}{{ end }}
{{- with .volumes }}
{{ toYaml . }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Probes ask the metrics port, which stays in plain text: /healthz whether the main loop turns, /readyz whether the service
does what it is there for. (dict "path" "/readyz" "seconds" 600): what a start must reach, and how long it may take. That
must be nothing that depends on another service.
*/}}
{{- define "apex.probes" -}}
startupProbe:
  httpGet: {path: {{ .path }}, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ div .seconds 5 }}
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 3
{{- end -}}
