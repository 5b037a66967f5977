{{/* The experiment: the file that pods see, as text, as data, and digests of what each service reads of it. */}}

{{- define "apex.configText" -}}
{{- if kindIs "string" .Values.config -}}
{{- .Values.config -}}
{{- else -}}
{{- $preset := .Files.Get (printf "configs/%s.yaml" .Values.config.preset) -}}
{{- if .Values.config.set -}}
{{- mergeOverwrite (fromYaml $preset) (include "apex.configSet" . | fromYaml) | toYaml -}}
{{- else -}}
{{- $preset -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* config.set, with numbers as numbers: `--set` makes text of 0.5 and 1e-4, which services rightly refuse. */}}
{{- define "apex.configSet" -}}
{{- $number := "-?[0-9]+(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?" -}}
{{- regexReplaceAll (printf "(?m)([:-] )\"(%s)\"$" $number) (toYaml .Values.config.set) "${1}${2}" -}}
{{- end -}}

{{/* Data as JSON; templates hand on text only. */}}
{{- define "apex.configData" -}}
{{- include "apex.configText" . | fromYaml | toJson -}}
{{- end -}}

{{/*
Digest of the sections that a component reads: a change of the learner's restarts no actor. `root`, `component`.
*/}}
{{- define "apex.configDigest" -}}
{{- $common := list "name" "seed" "env" "algorithm" "replay" -}}
{{- $sections := get (dict
  "actor" (append $common "actor")
  "evaluator" (concat $common (list "actor" "evaluator"))
  "learner" (concat $common (list "actor" "learner" "local"))
  "replay" (list "replay")
  "relay" (list "relay")
) .component -}}
{{- $data := include "apex.configData" .root | fromJson -}}
{{- $read := dict -}}
{{- range $sections -}}
{{- if hasKey $data . -}}
{{- $_ := set $read . (get $data .) -}}
{{- end -}}
{{- end -}}
{{- toJson $read | sha256sum -}}
{{- end -}}

{{/* Name of the run: its directory on the learner's volume. */}}
{{- define "apex.run" -}}
{{- .Values.learner.run | default (include "apex.configData" . | fromJson).name | default "experiment" -}}
{{- end -}}
