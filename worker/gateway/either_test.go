package gateway_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/link"
	"stanch/worker/authority"
	"stanch/worker/gateway"
)

func TestOneAddressSpeaksTLSAndPlain(t *testing.T) {
	pki, err := authority.OpenPKI(t.TempDir())
	require.NoError(t, err)
	certificate, err := pki.TLS(authority.RoleGateway, "gateway", link.ServerName)
	require.NoError(t, err)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	web.Listener = gateway.Either(web.Listener, certificate)
	web.Start()
	t.Cleanup(web.Close)
	address := web.Listener.Addr().String()

	trusted := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pki.Pool(), ServerName: link.ServerName, MinVersion: tls.VersionTLS13}}}
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{ServerName: link.ServerName, MinVersion: tls.VersionTLS13}}}
	for url, c := range map[string]*http.Client{"https://" + address: trusted, "http://" + address: http.DefaultClient} {
		for range 2 { // the connection is used again
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
			require.NoError(t, err)
			resp, err := c.Do(r)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, http.StatusOK, resp.StatusCode)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address, http.NoBody)
	require.NoError(t, err)
	_, err = stranger.Do(r) //nolint:bodyclose // there is none
	require.ErrorContains(t, err, "certificate")

	silent, err := net.Dial("tcp", address) //nolint:noctx // at once
	require.NoError(t, err)
	require.NoError(t, silent.Close(), "who says nothing keeps nobody")
}
