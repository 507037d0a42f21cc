package simulate

import (
	"encoding/binary"
	"reflect"
	"sync"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
)

// inMemoryConverter is a data converter that passes values in memory instead of encoding them as JSON, which takes a
// quarter of a simulation's time. Receivers get a copy that equals the result of JSON (a test compares them); other
// types are encoded as JSON.
type inMemoryConverter struct {
	converter.DataConverter
	copiers      *deepCopier
	mu           sync.Mutex
	storedValues []reflect.Value
}

const inMemoryEncoding = "stanch/in-memory"

func newInMemoryConverter(c *deepCopier) *inMemoryConverter {
	return &inMemoryConverter{DataConverter: converter.GetDefaultDataConverter(), copiers: c}
}

// isKeptInMemory reports whether values of a type are passed in memory: structs and lists of them. Other values are
// small, or Temporal's own.
func isKeptInMemory(t reflect.Type) bool {
	if t == nil {
		return false
	}
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[converter.RawValue]()
}

// ToPayload stores a copy of the value.
func (k *inMemoryConverter) ToPayload(value any) (*commonpb.Payload, error) {
	v := reflect.ValueOf(value)
	if !v.IsValid() || !isKeptInMemory(v.Type()) {
		return k.DataConverter.ToPayload(value) //nolint:wrapcheck // the default converter's error
	}
	kept := reflect.New(v.Type()).Elem()
	if err := k.copiers.forType(v.Type())(kept, v); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.storedValues = append(k.storedValues, kept)
	data := binary.BigEndian.AppendUint64(nil, uint64(len(k.storedValues)-1))
	return &commonpb.Payload{
		Metadata: map[string][]byte{converter.MetadataEncoding: []byte(inMemoryEncoding)},
		Data:     data,
	}, nil
}

// FromPayload returns a copy of the stored value.
func (k *inMemoryConverter) FromPayload(p *commonpb.Payload, to any) error {
	if string(p.GetMetadata()[converter.MetadataEncoding]) != inMemoryEncoding {
		return k.DataConverter.FromPayload(p, to) //nolint:wrapcheck // the default converter's error
	}
	if _, raw := to.(*converter.RawValue); raw {
		return k.DataConverter.FromPayload(p, to) //nolint:wrapcheck // the default converter's error
	}
	k.mu.Lock()
	kept := k.storedValues[binary.BigEndian.Uint64(p.GetData())]
	k.mu.Unlock()
	target := reflect.ValueOf(to)
	if target.Kind() == reflect.Pointer && target.Elem().Type() == kept.Type() {
		return k.copiers.forType(kept.Type())(target.Elem(), kept)
	}
	return copyThroughJSON(target, kept)
}

// ToPayloads stores each value.
func (k *inMemoryConverter) ToPayloads(values ...any) (*commonpb.Payloads, error) {
	if len(values) == 0 {
		return nil, nil //nolint:nilnil // as the default does
	}
	out := &commonpb.Payloads{}
	for _, v := range values {
		p, err := k.ToPayload(v)
		if err != nil {
			return nil, err
		}
		out.Payloads = append(out.Payloads, p)
	}
	return out, nil
}

// FromPayloads returns each value.
func (k *inMemoryConverter) FromPayloads(ps *commonpb.Payloads, to ...any) error {
	for i, p := range ps.GetPayloads() {
		if i >= len(to) {
			break
		}
		if err := k.FromPayload(p, to[i]); err != nil {
			return err
		}
	}
	return nil
}
