package gateway

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/sensors"
	"stanch/sensors/foreign"
	"stanch/sensors/redact"
	"stanch/worker/config"
)

// Foreign takes detections of other sensors over HTTP, with a token for each source.
type Foreign struct {
	Intake *Intake
	Log    *slog.Logger
	// Slack takes signed clicks at /slack/interactions; nil takes none.
	Slack  *Slack
	tokens map[string]string // source to token
}

// NewForeign reads the sources' tokens. A token shorter than 16 characters is refused.
func NewForeign(intake *Intake, sources []config.Foreign, log *slog.Logger) (*Foreign, error) {
	f := &Foreign{Intake: intake, Log: log, tokens: map[string]string{}}
	for _, s := range sources {
		raw, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("foreign source %s: %w", s.Name, err)
		}
		token := strings.TrimSpace(string(raw))
		if len(token) < 16 {
			return nil, fmt.Errorf("foreign source %s: the token in %s has fewer than 16 characters", s.Name, s.TokenFile)
		}
		f.tokens[s.Name] = token
	}
	return f, nil
}

// Server serves POST /v1/falco and POST /v1/detections.
func (f *Foreign) Server() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/falco", f.take(func(raw []byte) (sensors.Detection, error) { return foreign.Falco(raw) }))
	mux.HandleFunc("POST /v1/detections", f.take(DecodeDetection))
	if f.Slack != nil {
		mux.Handle("/slack/interactions", f.Slack)
	}
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, MaxHeaderBytes: 16 << 10}
}

func (f *Foreign) source(r *http.Request) (string, bool) {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", false
	}
	name, found := "", false
	for source, token := range f.tokens {
		if subtle.ConstantTimeCompare([]byte(token), []byte(given)) == 1 {
			name, found = source, true
		}
	}
	return name, found
}

// withoutSecrets does for detections of other sensors what the node does for its own.
func withoutSecrets(d *sensors.Detection) {
	p := &d.Event.Process
	p.Args = redact.Args(p.Args)
	for i := range p.Ancestors {
		p.Ancestors[i].Args = redact.Args(p.Ancestors[i].Args)
	}
	for i := range d.Reasons {
		d.Reasons[i] = redact.Text(d.Reasons[i])
	}
	d.Title = redact.Text(d.Title)
}

func (f *Foreign) take(decode func([]byte) (sensors.Detection, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		say := func(code int, text string) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(map[string]string{"status": text})
		}
		source, ok := f.source(r)
		if !ok {
			say(http.StatusUnauthorized, "give the source's token: Authorization: Bearer …")
			return
		}
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDetection))
		if err != nil {
			say(http.StatusRequestEntityTooLarge, fmt.Sprintf("at most %d bytes are accepted", maxDetection))
			return
		}
		d, err := decode(raw)
		if err != nil {
			say(http.StatusBadRequest, err.Error())
			return
		}
		d.Source = source
		withoutSecrets(&d)
		if err := f.complete(r.Context(), &d); err != nil {
			say(http.StatusUnprocessableEntity, err.Error())
			return
		}
		if err := f.Intake.Check(r.Context(), d, ""); err != nil {
			say(http.StatusUnprocessableEntity, err.Error())
			return
		}
		if err := f.Intake.Accept(r.Context(), []sensors.Detection{d}); err != nil {
			f.Log.Error("a foreign detection did not reach Temporal", "source", source, "error", err)
			say(http.StatusServiceUnavailable, "send it again later")
			return
		}
		say(http.StatusAccepted, "accepted")
	}
}

// complete finds the identity of the pod that a report names: a name is reused, a UID is not.
func (f *Foreign) complete(ctx context.Context, d *sensors.Detection) error {
	pod := &d.Event.Container.Pod
	if pod.Name == "" {
		return nil
	}
	if f.Intake.Kube == nil {
		return errors.New("it names a pod, and no cluster is connected")
	}
	got, err := f.Intake.Kube.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("pod %s/%s: %w", clip(pod.Namespace), clip(pod.Name), err)
	}
	if pod.UID != "" && pod.UID != string(got.UID) {
		return fmt.Errorf("pod %s/%s has the UID %s now, not %s", pod.Namespace, pod.Name, got.UID, clip(pod.UID))
	}
	pod.UID, pod.IP, pod.HostNetwork, pod.ServiceAccount, pod.Labels = string(got.UID), got.Status.PodIP, got.Spec.HostNetwork, got.Spec.ServiceAccountName, got.Labels
	d.Node, d.Event.Node = got.Spec.NodeName, got.Spec.NodeName
	for _, s := range got.Status.ContainerStatuses {
		_, id, _ := strings.Cut(s.ContainerID, "://")
		if d.Event.Container.ID != "" && !strings.HasPrefix(id, d.Event.Container.ID) {
			continue
		}
		d.Event.Container.ID, d.Event.Container.Name, d.Event.Container.Image = id, s.Name, s.Image
		if _, digest, ok := strings.Cut(s.ImageID, "@"); ok {
			d.Event.Container.ImageDigest = digest
		}
		break
	}
	if d.Event.Container.Workload.Name == "" {
		d.Event.Container.Workload = sensors.WorkloadHint(got.Name, got.Labels)
	}
	return nil
}
