package kube

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// writeCertificates writes a CA, the API server's certificate, the signing key of service account tokens, and a token
// and kubeconfig for each component that connects to the API server.
func (c *Cluster) writeCertificates() error {
	caKey, err := newECDSAKey()
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: c.NodeName + " lab"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return fmt.Errorf("make the lab's CA: %w", err)
	}
	serverKey, err := newECDSAKey()
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"kubernetes", "kubernetes.default.svc", "localhost"},
		IPAddresses: []net.IP{net.ParseIP(c.apiServerIP()), net.ParseIP(c.NodeIP), net.IPv4(127, 0, 0, 1)},
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, &serverKey.PublicKey, caKey)
	if err != nil {
		return fmt.Errorf("make the API server's certificate: %w", err)
	}
	signer, err := newECDSAKey()
	if err != nil {
		return err
	}
	serverKeyPEM, err := keyPEM(serverKey)
	if err != nil {
		return err
	}
	signerPEM, err := keyPEM(signer)
	if err != nil {
		return err
	}
	caPEM := pemBlock("CERTIFICATE", caDER)
	for name, content := range map[string]string{
		"ca.crt": caPEM, "server.crt": pemBlock("CERTIFICATE", serverDER), "server.key": serverKeyPEM, "sa.key": signerPEM,
	} {
		if err := c.writeFile(name, content); err != nil {
			return err
		}
	}
	return c.writeUserTokens(caPEM)
}

func (c *Cluster) writeUserTokens(caPEM string) error {
	var tokens bytes.Buffer
	for _, user := range []struct{ file, name, groups string }{
		{"admin", "admin", "system:masters"},
		{"controllers", "system:kube-controller-manager", "system:masters"},
		{"scheduler", "system:kube-scheduler", "system:masters"},
		{"proxy", "system:kube-proxy", "system:masters"},
		{"dns", "system:coredns", "system:masters"},
		{"kubelet", "system:node:" + c.NodeName, "system:nodes"},
	} {
		token := rand.Text()
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", token, user.name, user.name, user.groups)
		kubeconfig := api.NewConfig()
		kubeconfig.Clusters["lab"] = &api.Cluster{Server: c.APIServer, CertificateAuthorityData: []byte(caPEM)}
		kubeconfig.AuthInfos["user"] = &api.AuthInfo{Token: token}
		kubeconfig.Contexts["lab"] = &api.Context{Cluster: "lab", AuthInfo: "user", Namespace: "default"}
		kubeconfig.CurrentContext = "lab"
		content, err := clientcmd.Write(*kubeconfig)
		if err != nil {
			return fmt.Errorf("encode %s's kubeconfig: %w", user.name, err)
		}
		if err := c.writeFile(user.file+".kubeconfig", string(content)); err != nil {
			return err
		}
	}
	if err := c.writeFile("tokens.csv", tokens.String()); err != nil {
		return err
	}
	return c.connect()
}

func newECDSAKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func keyPEM(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encode a key: %w", err)
	}
	return pemBlock("EC PRIVATE KEY", der), nil
}

func pemBlock(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
