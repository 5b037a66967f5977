{{/* Whom actors, evaluators and the learner talk to. */}}
{{- define "apex.peerArguments" -}}
- --learner.address={{ include "apex.learnerAddress" . }}
- --replay.addresses
{{- range include "apex.replayAddresses" . | fromJsonArray }}
- {{ . }}
{{- end }}
{{- end -}}

{{/* Spot nodes by provider: their label, and the taint that the provider, or its documentation, puts on them. */}}
{{- define "apex.spotSelector" -}}
{{- if eq . "gke" }}
cloud.google.com/gke-spot: "true"
{{- else if eq . "eks" }}
eks.amazonaws.com/capacityType: SPOT
{{- else if eq . "aks" }}
kubernetes.azure.com/scalesetpriority: spot
{{- else if eq . "karpenter" }}
karpenter.sh/capacity-type: spot
{{- end }}
{{- end -}}

{{- define "apex.spotTolerations" -}}
{{- if eq . "gke" -}}
- {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
{{- else if eq . "aks" -}}
- {key: kubernetes.azure.com/scalesetpriority, operator: Equal, value: spot, effect: NoSchedule}
{{- end -}}
{{- end -}}
