{{/* The names of cluster-wide objects differ between two installations in one cluster. */}}
{{- define "stanch.clusterName" -}}
{{- if eq .Release.Namespace "stanch-system" -}}stanch-worker{{- else -}}{{ .Release.Namespace }}-stanch-worker{{- end -}}
{{- end -}}

{{- define "stanch.labels" -}}
app.kubernetes.io/part-of: stanch
{{- end -}}

{{/* An image: by digest if there is one, otherwise by tag. */}}
{{- define "stanch.image" -}}
{{- $name := printf "%s/%s" .root.Values.image.registry .image.repository -}}
{{- if not .root.Values.image.registry -}}{{- $name = .image.repository -}}{{- end -}}
{{- if .image.digest -}}{{ $name }}@{{ .image.digest }}{{- else -}}{{ $name }}:{{ .image.tag | default .root.Chart.AppVersion }}{{- end -}}
{{- end -}}

{{- define "stanch.gateway" -}}
{{- .Values.sensor.gatewayAddress | default (printf "stanch-gateway.%s.svc:7443" .Release.Namespace) -}}
{{- end -}}

{{/* The address where sensors enroll: the gateway's host, with the port for people. */}}
{{- define "stanch.enroll" -}}
https://{{ include "stanch.gateway" . | regexFind "^(\\[.*\\]|[^:]*)" }}:7444
{{- end -}}

{{/* Volumes are written as one list of {volume, mount}, so that none lacks its other half. */}}
{{- define "stanch.volumes" -}}
{{- range . }}
- name: {{ .name }}
  {{- toYaml .source | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "stanch.mounts" -}}
{{- range . }}
- name: {{ .name }}
  {{- toYaml .mount | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether the phase permits the class of an action. */}}
{{- define "stanch.permits" -}}
{{- $least := dict "observe" 1 "contain" 2 "disrupt" 3 -}}
{{- if ge (int .phase) (get $least .class) -}}yes{{- end -}}
{{- end -}}
