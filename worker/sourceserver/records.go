package sourceserver

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/sensors/truncate"
	"stanch/worker/ingest"
)

// endpoint is one path to which sensors post.
type endpoint struct {
	kind         string
	maxBodyBytes int64 // maximum size of a request
	splitRecords func([]byte) ([]integrations.RawRecord, error)
	decodeRecord integrations.Decoder
}

// ingestResponse is the response to a sender. The status says what to do. 202: all accepted. 207: some accepted and
// some refused finally. 400 and 422: all refused finally, so sending them again is useless. 429 and 503: send all of it
// again later; records that were accepted keep their id and are recognized.
type ingestResponse struct {
	Status    string          `json:"status"`
	Accepted  int             `json:"accepted"`
	Telemetry int             `json:"telemetry"`
	Health    int             `json:"health"`
	Refused   []refusedRecord `json:"refused,omitempty"`
}

// refusedRecord is one record that will never be accepted.
type refusedRecord struct {
	Line   int    `json:"line"` // or position in the list, from 1
	Reason string `json:"reason"`
}

const retryAfterDelay = 5 * time.Second

func writeIngestResponse(w http.ResponseWriter, code int, a ingestResponse) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a)
}

// authenticateAndRead authenticates the sender for an endpoint and reads the body. It returns nil after it has sent an
// error response.
func (f *Server) authenticateAndRead(w http.ResponseWriter, r *http.Request, d endpoint) (*sourceState, []byte) {
	s := f.authenticateSource(r)
	if s == nil {
		w.Header().Set("WWW-Authenticate", `Basic realm="stanch"`)
		writeIngestResponse(w, http.StatusUnauthorized,
			ingestResponse{Status: "missing or invalid token; send the source's token as Authorization: Bearer …, or as the " +
				"password of HTTP Basic"})
		return nil, nil
	}
	if s.kind != "" && s.kind != d.kind {
		writeIngestResponse(w, http.StatusForbidden, ingestResponse{Status: fmt.Sprintf(
			"the token belongs to a source of kind %s; post to /v1/%s", s.kind, s.kind)})
		return nil, nil
	}
	body, code, err := d.readBody(w, r)
	if err != nil {
		writeIngestResponse(w, code, ingestResponse{Status: err.Error()})
		return nil, nil
	}
	return s, body
}

func (f *Server) handleRecords(d endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, body := f.authenticateAndRead(w, r, d)
		if s == nil {
			return
		}
		records, err := d.splitRecords(body)
		if err != nil {
			s.counts.refused.Add(1)
			writeIngestResponse(w, http.StatusBadRequest, ingestResponse{
				Status:  err.Error(),
				Refused: []refusedRecord{{Line: 1, Reason: err.Error()}},
			})
			return
		}
		if wait := s.reserveRate(len(records)); wait > 0 {
			s.counts.limited.Add(1)
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
			writeIngestResponse(w, http.StatusTooManyRequests,
				ingestResponse{Status: "the source exceeded its rate limit; resend the request later"})
			return
		}
		code, a := f.ingestRecords(r.Context(), s, d, records)
		if f.HealthSink != nil && a.Accepted+a.Telemetry+a.Health > 0 {
			f.HealthSink.OnSourceMessage(s.name)
		}
		if code == http.StatusServiceUnavailable {
			s.counts.later.Add(1)
			w.Header().Set("Retry-After", strconv.Itoa(int(retryAfterDelay.Seconds())))
		}
		writeIngestResponse(w, code, a)
	}
}

// readBody reads a request. Falco may compress it: the limit also applies to the decompressed size.
func (d endpoint) readBody(w http.ResponseWriter, r *http.Request) (body []byte, code int, err error) {
	tooLarge := fmt.Errorf("the request is too large; at most %d bytes are accepted", d.maxBodyBytes)
	var from io.Reader = http.MaxBytesReader(w, r.Body, d.maxBodyBytes)
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		if from, err = gzip.NewReader(from); err != nil {
			return nil, http.StatusBadRequest, errors.New("decompress the request: it is not valid gzip")
		}
	default:
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf(
			"unknown content encoding %q; send it uncompressed or as gzip", truncate.Name(encoding))
	}
	body, err = io.ReadAll(io.LimitReader(from, d.maxBodyBytes+1))
	if limit := (*http.MaxBytesError)(nil); errors.As(err, &limit) || int64(len(body)) > d.maxBodyBytes {
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	}
	if err != nil {
		return nil, http.StatusBadRequest, errors.New("read the request: it is incomplete")
	}
	return body, 0, nil
}

// reserveRate takes n from the source's rate, or returns how long to wait.
func (s *sourceState) reserveRate(n int) time.Duration {
	r := s.limiter.ReserveN(time.Now(), n)
	if !r.OK() {
		return time.Minute
	}
	if wait := r.Delay(); wait > 0 {
		r.Cancel()
		return wait
	}
	return 0
}

// ingestRecords ingests the records of one request.
func (f *Server) ingestRecords(ctx context.Context, s *sourceState, d endpoint,
	records []integrations.RawRecord,
) (int, ingestResponse) {
	a := ingestResponse{Status: "accepted"}
	var alerts []sensors.Detection
	var sizes []int
	var spoke []integrations.SensorHealth
	undecoded := 0
	for _, record := range records {
		report, err := d.decodeRecord(record.Raw)
		if err != nil {
			undecoded++
		}
		switch {
		case err == nil && report.Alert != nil:
			if err = f.completeAlert(ctx, s, report.Alert); err == nil {
				alerts, sizes = append(alerts, *report.Alert), append(sizes, len(record.Raw))
			}
		case err == nil && report.Health != nil:
			spoke = append(spoke, *report.Health)
		case err == nil:
			a.Telemetry++
		}
		if later := (*ingest.TemporaryError)(nil); errors.As(err, &later) {
			f.Log.Warn("check detections of a source", "source", s.name, "error", err)
			return http.StatusServiceUnavailable, ingestResponse{Status: "send it again later"}
		}
		if err != nil {
			a.Refused = append(a.Refused, refusedRecord{Line: record.Line, Reason: truncate.Reason(err.Error())})
		}
	}
	if err := f.Ingester.AcceptChunks(ctx, alerts, sizes); err != nil {
		f.Log.Error("send detections of a source to Temporal", "source", s.name, "error", err)
		return http.StatusServiceUnavailable, ingestResponse{Status: "send it again later"}
	}
	for _, h := range spoke {
		f.reportSourceHealth(ctx, s, h)
	}
	a.Accepted, a.Health = len(alerts), len(spoke)
	s.counts.accepted.Add(uint64(len(alerts)))
	s.counts.telemetry.Add(uint64(a.Telemetry))
	s.counts.refused.Add(uint64(len(a.Refused)))
	switch {
	case len(a.Refused) == 0:
		return http.StatusAccepted, a
	case len(a.Refused) < len(records):
		a.Status = fmt.Sprintf("%d of %d were refused", len(a.Refused), len(records))
		return http.StatusMultiStatus, a
	case undecoded == len(records):
		a.Status = a.Refused[0].Reason
		return http.StatusBadRequest, a
	}
	a.Status = a.Refused[0].Reason
	return http.StatusUnprocessableEntity, a
}

// completeAlert completes an alert, and returns why it will never be accepted.
func (f *Server) completeAlert(ctx context.Context, s *sourceState, d *sensors.Detection) error {
	d.Source = s.name
	// Only the node's own sensor knows cgroups.
	d.Event.Container.CgroupPath, d.Event.Container.CgroupID, d.Event.Container.PodCgroupID = "", 0, 0
	ingest.RedactDetection(d)
	return f.Ingester.Check(ctx, d, "")
}
