package gateway

import (
	"crypto/x509"
	"encoding/pem"
	"time"
)

// endOf is when a certificate ends.
func endOf(certificate []byte) time.Time {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return time.Time{}
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return c.NotAfter
}
