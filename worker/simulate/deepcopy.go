package simulate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// copyFunc copies a value with the result of encoding it to JSON and back: without unnamed and omitted fields, with
// times in their encoded precision.
type copyFunc func(to, from reflect.Value) error

// deepCopier caches the copy functions of types. It is safe for concurrent use.
type deepCopier struct{ copiersByType sync.Map }

func (c *deepCopier) forType(t reflect.Type) copyFunc {
	if was, ok := c.copiersByType.Load(t); ok {
		return was.(copyFunc) //nolint:forcetypeassert // nothing else is stored
	}
	// A type may contain itself: until its copier is ready, this one looks it up at each use.
	c.copiersByType.Store(t, copyFunc(func(to, from reflect.Value) error { return c.forType(t)(to, from) }))
	made := c.buildCopyFunc(t)
	c.copiersByType.Store(t, made)
	return made
}

func copyThroughJSON(to, from reflect.Value) error {
	raw, err := json.Marshal(from.Interface())
	if err != nil {
		return fmt.Errorf("copy %s: %w", from.Type(), err)
	}
	if err := json.Unmarshal(raw, to.Interface()); err != nil {
		return fmt.Errorf("copy %s: %w", from.Type(), err)
	}
	return nil
}

func copyWithJSONMethods(to, from reflect.Value) error { return copyThroughJSON(to.Addr(), from) }

func copyDirectly(to, from reflect.Value) error {
	to.Set(from)
	return nil
}

func (c *deepCopier) buildCopyFunc(t reflect.Type) copyFunc {
	pointer := reflect.PointerTo(t)
	switch {
	case t == reflect.TypeFor[time.Time]():
		return copyTime
	case pointer.Implements(reflect.TypeFor[json.Marshaler]()), pointer.Implements(reflect.TypeFor[json.Unmarshaler]()),
		pointer.Implements(reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()),
		pointer.Implements(reflect.TypeFor[interface{ UnmarshalText([]byte) error }]()):
		return copyWithJSONMethods
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8,
		reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
		return copyDirectly
	case reflect.String:
		return copyString
	case reflect.Pointer:
		return copyPointer(t.Elem(), c.forType(t.Elem()))
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return copyBytes
		}
		return copySlice(t, c.forType(t.Elem()))
	case reflect.Map:
		if t.Key().Kind() == reflect.String && t.Key().NumMethod() == 0 {
			return copyMap(t, c.forType(t.Elem()))
		}
	case reflect.Struct:
		return c.copyStruct(t)
	default: // encoding/json handles it
	}
	return copyWithJSONMethods
}

func copyTime(to, from reflect.Value) error {
	t := from.Interface().(time.Time) //nolint:forcetypeassert // the copier of time.Time
	if t.Location() != time.UTC {
		return copyWithJSONMethods(to, from)
	}
	to.Set(reflect.ValueOf(t.Round(0)))
	return nil
}

func copyString(to, from reflect.Value) error {
	s := from.String()
	if !utf8.ValidString(s) {
		return copyWithJSONMethods(to, from)
	}
	to.SetString(s)
	return nil
}

func copyPointer(elem reflect.Type, of copyFunc) copyFunc {
	return func(to, from reflect.Value) error {
		if from.IsNil() {
			to.SetZero()
			return nil
		}
		fresh := reflect.New(elem)
		if err := of(fresh.Elem(), from.Elem()); err != nil {
			return err
		}
		to.Set(fresh)
		return nil
	}
}

func copyBytes(to, from reflect.Value) error {
	if from.IsNil() {
		to.SetZero()
		return nil
	}
	fresh := reflect.MakeSlice(from.Type(), from.Len(), from.Len())
	reflect.Copy(fresh, from)
	to.Set(fresh)
	return nil
}

func copySlice(t reflect.Type, of copyFunc) copyFunc {
	return func(to, from reflect.Value) error {
		if from.IsNil() {
			to.SetZero()
			return nil
		}
		fresh := reflect.MakeSlice(t, from.Len(), from.Len())
		for i := range from.Len() {
			if err := of(fresh.Index(i), from.Index(i)); err != nil {
				return err
			}
		}
		to.Set(fresh)
		return nil
	}
}

func copyMap(t reflect.Type, of copyFunc) copyFunc {
	return func(to, from reflect.Value) error {
		if from.IsNil() {
			to.SetZero()
			return nil
		}
		fresh := reflect.MakeMapWithSize(t, from.Len())
		for key, value := range from.Seq2() {
			if !utf8.ValidString(key.String()) {
				return copyWithJSONMethods(to, from)
			}
			copied := reflect.New(t.Elem()).Elem()
			if err := of(copied, value); err != nil {
				return err
			}
			fresh.SetMapIndex(key, copied)
		}
		to.Set(fresh)
		return nil
	}
}

// jsonField is one field of a struct in JSON.
type jsonField struct {
	index     int
	copyField copyFunc
	omitEmpty bool
	omitZero  bool
}

// copyStruct returns a function that copies the fields that JSON knows. Structs with more complex JSON rules are
// encoded and decoded.
func (c *deepCopier) copyStruct(t reflect.Type) copyFunc {
	var fields []jsonField
	names := map[string]bool{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case tag == "-":
			continue
		case f.Anonymous:
			return copyWithJSONMethods // its fields belong to the outer struct
		case !f.IsExported():
			continue
		case strings.Contains(options, "string"), f.Type.Kind() == reflect.Interface:
			return copyWithJSONMethods
		}
		if name == "" {
			name = f.Name
		}
		if names[strings.ToLower(name)] {
			return copyWithJSONMethods // encoding/json decides which of the two counts
		}
		names[strings.ToLower(name)] = true
		fields = append(fields, jsonField{
			i, c.forType(f.Type), strings.Contains(options, "omitempty"),
			strings.Contains(options, "omitzero"),
		})
	}
	return func(to, from reflect.Value) error {
		to.SetZero()
		for _, f := range fields {
			value := from.Field(f.index)
			if f.omitEmpty && isOmitEmpty(value) || f.omitZero && value.IsZero() {
				continue
			}
			if err := f.copyField(to.Field(f.index), value); err != nil {
				return err
			}
		}
		return nil
	}
}

// isOmitEmpty reports whether `omitempty` omits a value.
func isOmitEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	default:
		return v.IsZero()
	}
}
