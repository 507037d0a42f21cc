// Package installation does what an installation in a cluster needs beside the chart's objects: it creates the secrets
// once, says whether leases are in force that a change would leave without an undo, and waits until nodes are clean.
//
// It refuses to overwrite a key, and to create one of two keys that belong together. It never releases a lease: only
// people do.
package installation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/manifests"
)

// managedLabels are the labels of everything that an installation creates.
func managedLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/part-of": "stanch"}
}

// temporalCertificateLifetime is the lifetime of the certificates between the worker and the chart's Temporal. Nothing
// renews them: to replace them, delete both secrets and run `helm upgrade`.
const temporalCertificateLifetime = 10 * 365 * 24 * time.Hour

// Secrets creates and deletes the secrets of one installation.
type Secrets struct {
	KubeClient kubernetes.Interface
	Namespace  string
	// Temporal also creates the certificates of the Temporal that the chart brings, and of its client.
	Temporal bool
	// ExistingKeys makes missing keys an error: with new ones, an existing installation could not read its data, and its
	// nodes would refuse every command.
	ExistingKeys bool
}

// Create creates the secrets that are missing, and returns the names of those that it created. Keys that exist stay as
// they are.
func (s Secrets) Create(ctx context.Context) (created []string, err error) {
	dir, err := os.MkdirTemp("", "stanch-keys-")
	if err != nil {
		return nil, fmt.Errorf("create the installation's keys: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	names, err := s.createPair(ctx, [2]string{manifests.KeysSecret, manifests.PKISecret},
		func() (map[string]map[string][]byte, error) {
			if s.ExistingKeys {
				return nil, fmt.Errorf("the keys of this installation are missing: restore the secrets %s and %s in the namespace "+
					"%s; without them, uninstall with uninstall.keepData=false and install anew", manifests.KeysSecret,
					manifests.PKISecret, s.Namespace)
			}
			return newKeys(dir)
		})
	if err != nil {
		return nil, err
	}
	created = names
	if err := s.publishCA(ctx); err != nil {
		return created, err
	}
	if !s.Temporal {
		return created, nil
	}
	names, err = s.createPair(ctx, [2]string{manifests.TemporalSecret, manifests.TemporalServerSecret},
		func() (map[string]map[string][]byte, error) { return s.newTemporalCertificates(dir) })
	return append(created, names...), err
}

// createPair creates two secrets that belong together unless both exist.
func (s Secrets) createPair(ctx context.Context, names [2]string,
	create func() (map[string]map[string][]byte, error),
) ([]string, error) {
	var have []string
	for _, name := range names {
		_, err := s.KubeClient.CoreV1().Secrets(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			have = append(have, name)
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("read the secret %s/%s: %w", s.Namespace, name, err)
		}
	}
	switch len(have) {
	case 2:
		return nil, nil
	case 1:
		return nil, fmt.Errorf("create the installation's keys: of the secrets %s in the namespace %s only %s exists; they "+
			"belong together: restore the other, or delete this one for a new installation",
			strings.Join(names[:], " and "), s.Namespace, have[0])
	}
	secrets, err := create()
	if err != nil {
		return nil, err
	}
	var created []string
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		_, err := s.KubeClient.CoreV1().Secrets(s.Namespace).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace, Labels: managedLabels()}, Data: secrets[name],
		}, metav1.CreateOptions{})
		if err != nil {
			// The first of the two must not stay alone.
			return nil, errors.Join(fmt.Errorf("create the secret %s/%s: %w", s.Namespace, name, err),
				s.deleteSecrets(context.WithoutCancel(ctx), created...))
		}
		created = append(created, name)
	}
	return created, nil
}

// newKeys returns the secrets with the authority's keys, the key of payloads, and the certificate authority.
func newKeys(dir string) (map[string]map[string][]byte, error) {
	keys, pki := filepath.Join(dir, "keys"), filepath.Join(dir, "pki")
	if _, err := authority.OpenOrCreate(keys); err != nil {
		return nil, fmt.Errorf("create the authority: %w", err)
	}
	if _, err := codec.Open(keys); err != nil {
		return nil, fmt.Errorf("create the key of payloads: %w", err)
	}
	if _, err := authority.OpenOrCreatePKI(pki); err != nil {
		return nil, fmt.Errorf("create the certificate authority: %w", err)
	}
	return readSecrets(map[string]string{manifests.KeysSecret: keys, manifests.PKISecret: pki})
}

// newTemporalCertificates returns the secrets with the certificates of Temporal and its client. Their authority is not
// that of nodes, whose certificates are therefore not valid for Temporal; its key is forgotten, so that nobody can
// issue another one.
func (s Secrets) newTemporalCertificates(dir string) (map[string]map[string][]byte, error) {
	ca, err := authority.OpenOrCreatePKI(filepath.Join(dir, "temporal"))
	if err != nil {
		return nil, fmt.Errorf("create the certificates of Temporal: %w", err)
	}
	ca.Lifetime = temporalCertificateLifetime
	server, client := filepath.Join(dir, "server"), filepath.Join(dir, "client")
	service := manifests.TemporalName + "." + s.Namespace
	if _, _, err := ca.WriteCertificateFiles(server, "tls", authority.RoleTemporal, "temporal", "127.0.0.1",
		gatewayrpc.ServerName, service, service+".svc"); err != nil {
		return nil, fmt.Errorf("create the certificates of Temporal: %w", err)
	}
	if _, _, err := ca.WriteCertificateFiles(client, "tls", authority.RoleTemporal, "stanch"); err != nil {
		return nil, fmt.Errorf("create the certificates of Temporal: %w", err)
	}
	return readSecrets(map[string]string{manifests.TemporalServerSecret: server, manifests.TemporalSecret: client})
}

// readSecrets returns the files of directories as the data of secrets.
func readSecrets(dirs map[string]string) (map[string]map[string][]byte, error) {
	out := map[string]map[string][]byte{}
	for name, dir := range dirs {
		files, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("read the files of %s: %w", name, err)
		}
		out[name] = map[string][]byte{}
		for _, f := range files {
			raw, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				return nil, fmt.Errorf("read the files of %s: %w", name, err)
			}
			out[name][f.Name()] = raw
		}
	}
	return out, nil
}

// publishCA stores the authority's certificate, which is public, where sensors read it.
func (s Secrets) publishCA(ctx context.Context) error {
	pki, err := s.KubeClient.CoreV1().Secrets(s.Namespace).Get(ctx, manifests.PKISecret, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the secret %s/%s: %w", s.Namespace, manifests.PKISecret, err)
	}
	certificate := string(pki.Data["ca.crt"])
	if certificate == "" {
		return fmt.Errorf("read the secret %s/%s: it has no ca.crt; create it with `stanch cert authority`", s.Namespace,
			manifests.PKISecret)
	}
	maps := s.KubeClient.CoreV1().ConfigMaps(s.Namespace)
	have, err := maps.Get(ctx, manifests.CAConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: manifests.CAConfigMap, Namespace: s.Namespace, Labels: managedLabels()},
			Data:       map[string]string{"ca.crt": certificate},
		}, metav1.CreateOptions{})
	case err == nil && have.Data["ca.crt"] != certificate:
		have.Data = map[string]string{"ca.crt": certificate}
		_, err = maps.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("publish the authority's certificate in %s/%s: %w", s.Namespace, manifests.CAConfigMap, err)
	}
	return nil
}

// Delete deletes what Create created, and the evidence, the histories and the small state that the keys protect. It
// refuses while a sensor is installed.
func (s Secrets) Delete(ctx context.Context) error {
	core := s.KubeClient.CoreV1()
	_, err := s.KubeClient.AppsV1().DaemonSets(s.Namespace).Get(ctx, manifests.SensorName, metav1.GetOptions{})
	switch {
	case err == nil:
		return fmt.Errorf("delete the data: Stanch is installed in the namespace %s; uninstall it first", s.Namespace)
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("delete the data: %w", err)
	}
	failed := []error{s.deleteSecrets(ctx, manifests.KeysSecret, manifests.PKISecret, manifests.TemporalSecret,
		manifests.TemporalServerSecret)}
	for _, name := range []string{
		manifests.CAConfigMap, guards.KillSwitchConfigMap, guards.UsedGrantsConfigMap, health.NodeRegistryConfigMap,
	} {
		err := core.ConfigMaps(s.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("delete the config map %s/%s: %w", s.Namespace, name, err))
		}
	}
	for _, name := range []string{manifests.EvidenceClaim, manifests.TemporalName} {
		err := core.PersistentVolumeClaims(s.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("delete the volume claim %s/%s: %w", s.Namespace, name, err))
		}
	}
	return errors.Join(failed...)
}

func (s Secrets) deleteSecrets(ctx context.Context, names ...string) error {
	var failed []error
	for _, name := range names {
		err := s.KubeClient.CoreV1().Secrets(s.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, fmt.Errorf("delete the secret %s/%s: %w", s.Namespace, name, err))
		}
	}
	return errors.Join(failed...)
}
