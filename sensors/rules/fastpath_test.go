package rules

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
)

// The values of random events and conditions. There are few, so that comparisons are often true.
var (
	sampleWords = []string{
		"", "sh", "bash", "/bin/sh", "/tmp/a (deleted)", "a/b/", "169.254.169.254", "10.1.2.3", "::1",
		"shadow", "tcp", "prod-eu", "memfd:x", "x.y", "é\xff",
	}
	sampleNumbers = []int64{0, 1, 2, 3, 7, 80, 255, 256, 4444, -1}
)

// fillRandomly fills a value with sample words and numbers.
func fillRandomly(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(sampleWords[r.IntN(len(sampleWords))])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(sampleNumbers[r.IntN(len(sampleNumbers))])
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(sampleNumbers[r.IntN(len(sampleNumbers))]))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 3))
		for i := range v.Len() {
			fillRandomly(r, v.Index(i))
		}
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		for range r.IntN(3) {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fillRandomly(r, key)
			fillRandomly(r, value)
			m.SetMapIndex(key, value)
		}
		v.Set(m)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for _, field := range v.Fields() {
			fillRandomly(r, field)
		}
	default:
	}
}

func randomEvent(r *rand.Rand) sensors.Event {
	var e sensors.Event
	fillRandomly(r, reflect.ValueOf(&e).Elem())
	if r.IntN(3) == 0 {
		e.Container = sensors.Container{}
	}
	return e
}

// collectLeafFields collects the paths of all fields that a condition can compare.
func collectLeafFields(t reflect.Type, prefix string, out map[string]reflect.Kind) {
	for name, ft := range exprFieldTypes(t) {
		for ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		switch ft.Kind() {
		case reflect.Struct:
			collectLeafFields(ft, prefix+name+".", out)
		case reflect.Slice, reflect.Map:
		default:
			out[prefix+name] = ft.Kind()
		}
	}
}

func conditionFields() map[string]reflect.Kind {
	all := map[string]reflect.Kind{}
	collectLeafFields(reflect.TypeFor[conditionEnv](), "", all)
	return all
}

func randomComparison(r *rand.Rand, all map[string]reflect.Kind, names []string) string {
	name := names[r.IntN(len(names))]
	word := func() string { return fmt.Sprintf("%q", sampleWords[r.IntN(len(sampleWords)-1)]) }
	number := func() int64 { return sampleNumbers[r.IntN(len(sampleNumbers))] }
	pick := func(choices ...string) string { return choices[r.IntN(len(choices))] }
	switch all[name] {
	case reflect.String:
		return pick(
			name+" == "+word(), name+" != "+word(), name+" in some_words", name+" not in ["+word()+", "+word()+"]",
			name+" contains "+word(), name+" startsWith "+word(), name+" endsWith "+word(),
			name+` matches "^[a-z]+$"`, "contains_any("+name+", some_words)", "cidr("+name+`, "10.0.0.0/8")`,
			"base("+name+") == "+word(), "lower("+name+") in ["+word()+"]", "hasPrefix("+name+", "+word()+")",
			"container.pod.labels["+word()+"] == "+word(), "any(process.ancestors, .name == "+word()+")",
			"none(process.ancestors, program(#) in some_words)", "all(process.args, # contains "+word()+")",
			"any(some_words, hasSuffix("+name+", \"0\" + #))",
			"any(process.args, indexOf(#, "+word()+") >= 1)", "any(process.ancestors, any(#.args, # == "+word()+"))",
			"any(some_words, any(process.args, # startsWith "+word()+") && # == "+name+")",
			"any(process.ancestors, #.exe == "+name+" || len(#.args) > 1 && #.args[1] == "+word()+")", "any(process.args, "+name+
				" in some_words && # in [\"sh\", \"-c\"])", name+" + \"x\" == "+word(), "egress_declared(container)",
			"len("+name+") > 3", name+" in []",
			"process.args[0] == "+word(), `container.pod.annotations.sh == `+word(), name+" == file.path",
			word()+" in process.args",
		)
	case reflect.Bool:
		return pick(name, "!"+name, name+" == true", name+" != false", name+" == in_container")
	default:
		return pick(
			fmt.Sprintf("%s %s %d", name, pick("==", "!=", "<", "<=", ">", ">="), number()), fmt.Sprintf("%s in [%d, %d]", name,
				number(), number()), name+" in some_numbers",
			fmt.Sprintf("has_bits(%s, %d)", name, max(number(), 0)), "len(process.args) >= 1", name+" in 1..3",
			fmt.Sprintf("%s + 1 == %d", name, number()), name+" == 1.5",
		)
	}
}

func randomCondition(r *rand.Rand, all map[string]reflect.Kind, names []string, depth int) string {
	if depth == 0 || r.IntN(4) == 0 {
		return randomComparison(r, all, names)
	}
	a, b := randomCondition(r, all, names, depth-1), randomCondition(r, all, names, depth-1)
	return []string{"(" + a + ") && (" + b + ")", "(" + a + ") || (" + b + ")", "!(" + a + ")", "(" + a + ") ? (" + b +
		") : in_container", "some_macro || " + a}[r.IntN(5)]
}

func TestFastPathAgreesWithExprOnRandomEvents(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	all := conditionFields()
	names := sortedKeys(all)
	l := loadPacks(
		[]PackSource{
			{
				FS: fstest.MapFS{
					"p.yaml": {
						Data: []byte(
							"lists: { some_words: [sh, shadow, \"10.1.2.3\"], some_numbers: [1, 7, 4444] }\nmacros: { some_macro: 'exe in some_words && process.uid in some_numbers' }",
						),
					},
				},
			},
		},
	)
	require.Empty(t, l.problems(true))
	v, known, answers := newConditionEnv(), 0, map[bool]int{}
	for range 4000 {
		source := randomCondition(r, all, names, 3)
		c, err := l.compileSource(source)
		require.NoError(t, err, source)
		for range 12 {
			e := randomEvent(r)
			v.setEvent(e)
			short := c.fastpath(v)
			v.setEvent(e)
			long, err := c.evaluateWithExpr(v)
			if short == triUnknown {
				continue
			}
			known++
			if err == nil {
				require.Equal(t, long, short == triTrue, "%s on %+v", source, e)
				answers[long]++
			} else {
				require.NotEqual(t, triTrue, short, "a condition that expr cannot evaluate must not fire: %s on %+v", source, e)
			}
		}
	}
	require.Greater(t, known, 15000)
	require.Greater(t, answers[true], 3000)
	require.Greater(t, answers[false], 3000)
}

func TestFastPathAgreesWithExprOnShippedRules(t *testing.T) {
	set, err := LoadShipped()
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 2))
	v := newConditionEnv()
	fired, silent := 0, 0
	for _, rule := range set.Rules() {
		checks := []*compiledCondition{rule.compiled}
		for _, e := range rule.Exceptions {
			if e.condition != nil {
				checks = append(checks, e.condition)
			}
		}
		for _, c := range checks {
			for i := range 600 {
				e := randomEvent(r)
				if i < len(rule.Tests) {
					e = rule.Tests[i].event
				}
				v.setEvent(e)
				short := c.fastpath(v)
				long, err := c.evaluateWithExpr(v)
				if short != triUnknown && err == nil {
					require.Equal(t, long, short == triTrue, "%s on %+v", rule.Name, e)
					if long {
						fired++
					} else {
						silent++
					}
				}
			}
		}
	}
	require.Greater(t, min(fired, silent), 100, "too few conditions were decided by the fast path")
}

func TestFastPathSupportsEveryField(t *testing.T) {
	l := loadPacks(nil)
	v := newConditionEnv()
	v.setEvent(sensors.Event{})
	all := conditionFields()
	for _, name := range sortedKeys(all) {
		source := map[bool]string{true: name + ` == "x"`, false: name + " == 1"}[all[name] == reflect.String]
		if all[name] == reflect.Bool {
			source = name
		}
		c, err := l.compileSource(source)
		require.NoError(t, err, source)
		require.NotEqual(t, triUnknown, c.fastpath(v), source)
	}
	require.True(t, slices.ContainsFunc(sortedKeys(all),
		func(s string) bool { return strings.HasPrefix(s, "container.pod.") }))
}
