package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"
)

// local is the client of the running Stanch's local socket.
type local struct {
	path  string
	drill string // the key of a drill
}

func (g *globals) local() *local { return &local{path: g.socket()} }

func (l *local) call(ctx context.Context, method, path string, in, out any) error {
	client := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.path)
	}}}
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(raw)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://stanch"+path, body)
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	if l.drill != "" {
		r.Header.Set("Stanch-Drill", l.drill)
	}
	resp, err := client.Do(r)
	if err != nil {
		if _, statErr := os.Stat(l.path); errors.Is(statErr, fs.ErrNotExist) {
			return fmt.Errorf("no Stanch runs here: there is no %s; start `stanch up`, or name its --data", l.path)
		}
		return fmt.Errorf("reach Stanch at %s: %w", l.path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read Stanch's answer: %w", err)
	}
	if resp.StatusCode >= 400 {
		var problem struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(raw, &problem) != nil || problem.Error == "" {
			problem.Error = resp.Status
		}
		return errors.New(problem.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("read Stanch's answer: %w", err)
	}
	return nil
}

func (l *local) get(ctx context.Context, path string, out any) error {
	return l.call(ctx, http.MethodGet, path, nil, out)
}

func (l *local) post(ctx context.Context, path string, in, out any) error {
	return l.call(ctx, http.MethodPost, path, in, out)
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
