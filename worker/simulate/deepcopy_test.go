package simulate

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// transportedTypes are the types that workflows and activities exchange.
var transportedTypes = []any{
	incident.Input{},
	[]incident.AttestedDetection{},
	[]incident.SelectedPlaybook{},
	playbooks.Incident{},
	playbook.Input{},
	playbook.Report{},
	[]playbook.ApprovalRequest{},
	lease.Input{},
	lease.Holder{},
	lease.OutgoingReport{},
	activities.ObserveInput{},
	activities.Result{},
	activities.PlanInput{},
	activities.PlanResult{},
	activities.ApplyInput{},
	activities.ApplyResult{},
	activities.VerifyInput{},
	activities.VerifyResult{},
	activities.UndoInput{},
	activities.UndoResult{},
	activities.CountVotesInput{},
	activities.VoteCount{},
	activities.Request{},
	attestation.Envelope{},
	incident.TriageDecision{},
}

// A copy equals the result of encoding and decoding JSON, for random values of every exchanged type.
func TestDeepCopyEqualsJSONRoundTrip(t *testing.T) {
	random, k := rand.New(rand.NewPCG(1, 2)), newInMemoryConverter(&deepCopier{})
	kept := 0
	for _, zero := range transportedTypes {
		for range 200 {
			v := reflect.New(reflect.TypeOf(zero)).Elem()
			fillRandom(random, v, 0)
			before, err := json.Marshal(v.Interface())
			require.NoError(t, err)
			p, err := k.ToPayload(v.Interface())
			require.NoError(t, err)
			if string(p.GetMetadata()[converter.MetadataEncoding]) == inMemoryEncoding {
				kept++
			}
			want, got := reflect.New(v.Type()), reflect.New(v.Type())
			require.NoError(t, json.Unmarshal(before, want.Interface()))
			fillRandom(random, v, 0) // later changes by the sender do not affect the copy
			require.NoError(t, k.FromPayload(p, got.Interface()))
			require.Equal(t, want.Interface(), got.Interface(), "%s of %s", v.Type(), before)
		}
	}
	require.Positive(t, kept)
	// A reader of another type gets the result of decoding JSON.
	p, err := k.ToPayload(activities.Request{Action: "pod.isolate", Duration: time.Hour})
	require.NoError(t, err)
	var other map[string]any
	require.NoError(t, k.FromPayload(p, &other))
	require.Equal(t, "pod.isolate", other["action"])
}

// fillRandom fills a value with random content, including special cases of JSON.
func fillRandom(r *rand.Rand, v reflect.Value, depth int) {
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf([]time.Time{
			{},
			time.Unix(r.Int64N(1e9), r.Int64N(1e9)).UTC(), time.Now(), time.Now().UTC(),
			time.Unix(5, 0).In(time.FixedZone("", 3600)),
		}[r.IntN(5)]))
		return
	case reflect.TypeFor[json.RawMessage]():
		v.Set(reflect.ValueOf([]json.RawMessage{
			nil, json.RawMessage(`{"a": "<b>",  "c": [1, 2]}`),
			json.RawMessage(`null`),
		}[r.IntN(3)]))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(r.Int64N(1 << 30))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(r.Int64N(200)))
	case reflect.Float64:
		v.SetFloat(r.Float64())
	case reflect.String:
		v.SetString([]string{"", "x", "ü<>&\u2028", "bad \xff\xfe bytes", "a\x00b"}[r.IntN(5)])
	case reflect.Pointer:
		v.SetZero()
		if depth < 5 && r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fillRandom(r, v.Elem(), depth+1)
		}
	case reflect.Slice:
		v.SetZero()
		if n := r.IntN(4) - 1; n >= 0 && depth < 6 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fillRandom(r, v.Index(i), depth+1)
			}
		}
	case reflect.Map:
		v.SetZero()
		if n := r.IntN(4) - 1; n >= 0 && depth < 6 {
			v.Set(reflect.MakeMap(v.Type()))
			for range n {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fillRandom(r, key, depth+1)
				fillRandom(r, value, depth+1)
				v.SetMapIndex(key, value)
			}
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			if field.CanSet() {
				fillRandom(r, field, depth+1)
			}
		}
	default: // not among the exchanged types
	}
}
