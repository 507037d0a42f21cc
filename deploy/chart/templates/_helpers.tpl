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

{{/* Whether the chart brings its own Temporal. */}}
{{- define "stanch.bundled" -}}
{{- if not .Values.temporal.address -}}yes{{- end -}}
{{- end -}}

{{- define "stanch.temporal" -}}
{{- .Values.temporal.address | default (printf "stanch-temporal.%s.svc:7233" .Release.Namespace) -}}
{{- end -}}

{{/* Which Temporal has the leases: address and namespace. */}}
{{- define "stanch.temporalName" -}}
{{- include "stanch.temporal" . }}/{{ .Values.temporal.namespace -}}
{{- end -}}

{{/* Whether the secret stanch-temporal is mounted, and has a certificate. */}}
{{- define "stanch.temporalTLS" -}}
{{- if or .Values.temporal.tls.enabled (include "stanch.bundled" .) -}}yes{{- end -}}
{{- end -}}

{{/* The actions that the worker can apply and undo, separated by commas. */}}
{{- define "stanch.permittedActions" -}}
{{- $phase := int .Values.phase -}}
{{- $used := .Values.actions -}}
{{- $names := list -}}
{{- range (.Files.Get "files/permissions.yaml" | fromYaml).all -}}
{{- if and (or (not $used) (has .name $used)) (include "stanch.permits" (dict "phase" $phase "class" .class)) -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{/* What all jobs of hooks have in common: a pod without any right but those of its service account. */}}
{{- define "stanch.hookPod" -}}
enableServiceLinks: false
restartPolicy: Never
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.worker.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.worker.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsUser: 65532
  runAsGroup: 65532
  runAsNonRoot: true
  seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "stanch.hookContainer" -}}
name: stanch
image: {{ include "stanch.image" (dict "root" . "image" .Values.image.worker) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources: { requests: { cpu: 10m, memory: 64Mi }, limits: { memory: 256Mi } }
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* The annotations of a hook's object: events, weight. It is gone when all hooks of the event succeeded and,
with failed, also when they did not: Helm 3.18 and later print what it said. */}}
{{- define "stanch.hook" -}}
helm.sh/hook: {{ .events }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded{{ if .failed }},hook-failed{{ end }}
helm.sh/hook-output-log-policy: hook-failed
{{- end -}}

{{/* The policy for the pods of a hook's jobs: nobody connects to them, and they connect to the API server only. It has
the name of the pods. */}}
{{- define "stanch.hookPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "stanch.labels" .root | nindent 4 }}
  annotations: {{- include "stanch.hook" (dict "events" .events "weight" -30) | nindent 4 }}
spec:
  podSelector: { matchLabels: { app.kubernetes.io/name: {{ .name }} } }
  policyTypes: [Ingress, Egress]
  ingress: []
  egress:
    - ports:
        - { protocol: TCP, port: 443 }
        - { protocol: TCP, port: 6443 } # the API server at its own port
    {{- with .root.Values.networkPolicy.egress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
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
