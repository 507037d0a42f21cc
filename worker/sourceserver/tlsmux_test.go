package sourceserver_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/sensors/gatewayrpc"
	"stanch/worker/authority"
	"stanch/worker/sourceserver"
)

// remoteListener is a listener whose connections appear to come from another machine.
type remoteListener struct{ net.Listener }

type remoteConn struct{ net.Conn }

func (l remoteListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return remoteConn{c}, err
}

func (remoteConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP("203.0.113.7"), Port: 4711}
}

func TestPlainHTTPFromAnotherMachineIsRefused(t *testing.T) {
	pki, err := authority.OpenOrCreatePKI(t.TempDir())
	require.NoError(t, err)
	certificate, err := pki.MutualTLSConfig(authority.RoleGateway, "gateway", gatewayrpc.ServerName)
	require.NoError(t, err)
	handled := false
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { handled = true }))
	web.Listener = sourceserver.NewTLSMux(remoteListener{web.Listener}, certificate)
	web.Start()
	t.Cleanup(web.Close)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+web.Listener.Addr().String()+"/v1/falco",
		http.NoBody)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer 0123456789abcdef")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	require.Contains(t, string(text), "use https")
	require.False(t, handled)

	trusted := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs:    pki.CertPool(),
		ServerName: gatewayrpc.ServerName, MinVersion: tls.VersionTLS13,
	}}}
	r, err = http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+web.Listener.Addr().String(), http.NoBody)
	require.NoError(t, err)
	resp, err = trusted.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestListenerServesTLSAndPlainHTTP(t *testing.T) {
	pki, err := authority.OpenOrCreatePKI(t.TempDir())
	require.NoError(t, err)
	certificate, err := pki.MutualTLSConfig(authority.RoleGateway, "gateway", gatewayrpc.ServerName)
	require.NoError(t, err)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_,
			_ = io.Copy(w, r.Body)
	}))
	web.Listener = sourceserver.NewTLSMux(web.Listener, certificate)
	web.Start()
	t.Cleanup(web.Close)
	address := web.Listener.Addr().String()

	trusted := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs:    pki.CertPool(),
		ServerName: gatewayrpc.ServerName, MinVersion: tls.VersionTLS13,
	}}}
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		ServerName: gatewayrpc.ServerName,
		MinVersion: tls.VersionTLS13,
	}}}
	for url, c := range map[string]*http.Client{"https://" + address: trusted, "http://" + address: http.DefaultClient} {
		for range 2 { // the connection is reused
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
	_, err = stranger.Do(r) //nolint:bodyclose // there is no body
	require.ErrorContains(t, err, "certificate")

	silent, err := net.Dial("tcp", address) //nolint:noctx // returns at once
	require.NoError(t, err)
	require.NoError(t, silent.Close(), "a silent connection blocks nobody")
}
