package playbooks

import (
	"reflect"
	"slices"
	"strings"
)

// typeScope contains the names that an expression may use, each with a zero value of its type.
type typeScope map[string]any

// stepStructType returns the struct type of a step in later expressions: its outputs by their JSON names, `outcome`,
// the number of `targets`, and the targets that `failed` or were refused.
func stepStructType(outputs reflect.Type) reflect.Type {
	fields := []reflect.StructField{
		{Name: "Outcome", Type: reflect.TypeFor[string](), Tag: `expr:"outcome"`},
		{Name: "Targets", Type: reflect.TypeFor[int](), Tag: `expr:"targets"`},
		{Name: "Failed", Type: reflect.TypeFor[[]Target](), Tag: `expr:"failed"`},
	}
	if outputs != nil {
		for f := range outputs.Fields() {
			if name := jsonFieldName(f); name != "" && !slices.Contains(alwaysReadableFields, name) {
				fields = append(fields, reflect.StructField{
					Name: "Out" + f.Name, Type: f.Type,
					Tag: reflect.StructTag(`expr:"` + name + `"`),
				})
			}
		}
	}
	return reflect.StructOf(fields)
}

// alwaysReadableFields are the fields of a step that expressions may read whatever its outcome.
var alwaysReadableFields = []string{"outcome", "targets", "failed"}

// newStepValue returns a step as expressions see it: a value of stepStructType. An invalid value leaves the outputs at
// zero.
func newStepValue(outputs reflect.Type, value reflect.Value, outcome Outcome, targets int, failed []Target) any {
	out := reflect.New(stepStructType(outputs)).Elem()
	out.Field(0).SetString(string(outcome))
	out.Field(1).SetInt(int64(targets))
	out.Field(2).Set(reflect.ValueOf(failed))
	if value.IsValid() {
		for i := range outputs.NumField() {
			if field := out.FieldByName("Out" + outputs.Field(i).Name); field.IsValid() {
				field.Set(value.Field(i))
			}
		}
	}
	return out.Interface()
}

func zeroStepValue(outputs reflect.Type) any {
	return reflect.Zero(stepStructType(outputs)).Interface()
}

func jsonFieldName(f reflect.StructField) string {
	if !f.IsExported() {
		return ""
	}
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	switch name {
	case "-":
		return ""
	case "":
		return f.Name
	}
	return name
}
