package guards

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
)

// What one replica is told, all know; and a cluster that is away neither starts nor stops anything for a while.
func TestSharedSwitch(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "stanch-system", Name: SwitchName}})
	now := time.Now()
	clock := func() time.Time { return now }
	a := &SharedSwitch{Client: client, Namespace: "stanch-system", Now: clock}
	b := &SharedSwitch{Client: client, Namespace: "stanch-system", Now: clock}
	is := func(s *SharedSwitch, want bool, when string) {
		t.Helper()
		stopped, by, err := s.Stopped(context.Background())
		if err != nil || stopped != want || want != (by != "") {
			t.Errorf("%s: stopped is %t by %q (%v), want %t", when, stopped, by, err, want)
		}
	}
	is(a, false, "at first")
	is(b, false, "at first")
	if err := a.Stop(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	is(a, true, "where it was stopped, at once")
	now = now.Add(switchFresh)
	is(b, true, "at the other, a moment later")
	if err := b.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	is(b, false, "resumed")
	now = now.Add(switchFresh)
	is(a, false, "resumed at the other")

	away := errors.New("connection refused")
	client.PrependReactor("get", "configmaps", func(ktesting.Action) (bool, runtime.Object, error) { return away != nil, nil, away })
	now = now.Add(time.Minute)
	is(a, false, "the API server is away for a minute")
	now = now.Add(switchGrace)
	if stopped, _, err := a.Stopped(t.Context()); !stopped || err == nil {
		t.Errorf("away for long: stopped is %t (%v), want an error that counts as stopped", stopped, err)
	}
	if stopped, _, err := (&SharedSwitch{Client: client, Namespace: "stanch-system"}).Stopped(t.Context()); !stopped || err == nil {
		t.Errorf("never read: stopped is %t (%v), want an error that counts as stopped", stopped, err)
	}
	away = nil
	is(a, false, "it is back")
	if err := client.CoreV1().ConfigMaps("stanch-system").Delete(t.Context(), SwitchName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(switchFresh)
	if stopped, _, err := a.Stopped(t.Context()); !stopped || err == nil {
		t.Errorf("deleted: stopped is %t (%v), want an error that counts as stopped", stopped, err)
	}
}
