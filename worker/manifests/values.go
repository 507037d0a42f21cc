package manifests

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// valuesHeader says what wrote a file of values, and when it becomes outdated.
const valuesHeader = `# Values of the Stanch chart, written by stanch manifests --values-only (%s).
# The permissions in the cluster follow from phase and actions. After each change of a playbook, of the library or of
# the phase, write this file again and run helm upgrade; stanch doctor compares.
`

// WriteValues returns the values of the chart for these options as YAML: phase, actions and config, and whatever
// differs from the chart's defaults.
func WriteValues(o Options) ([]byte, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	values, err := o.values()
	if err != nil {
		return nil, err
	}
	c, err := LoadChart(o.Version)
	if err != nil {
		return nil, err
	}
	for name, value := range values {
		if name == "phase" || name == "actions" || name == "config" {
			continue
		}
		if values[name] = withoutDefaults(value, c.Values[name]); values[name] == nil {
			delete(values, name)
		}
	}
	if err := checkValues(o, values); err != nil {
		return nil, err
	}
	var out strings.Builder
	fmt.Fprintf(&out, valuesHeader, o.Version)
	first := []string{"phase", "actions", "config"}
	for _, name := range slices.Concat(first, slices.Sorted(maps.Keys(values))) {
		value, ok := values[name]
		if !ok {
			continue
		}
		delete(values, name)
		raw, err := yaml.Marshal(map[string]any{name: value})
		if err != nil {
			return nil, fmt.Errorf("write the value %s: %w", name, err)
		}
		out.Write(raw)
	}
	return []byte(out.String()), nil
}

// withoutDefaults returns the part of a value that differs from the default; nil if it does not differ.
func withoutDefaults(value, standard any) any {
	m, isMap := value.(map[string]any)
	if !isMap {
		if fmt.Sprint(value) == fmt.Sprint(standard) { // the chart's numbers are float64
			return nil
		}
		return value
	}
	defaults, _ := standard.(map[string]any)
	out := map[string]any{}
	for k, v := range m {
		if rest := withoutDefaults(v, defaults[k]); rest != nil && !reflect.DeepEqual(rest, map[string]any{}) {
			out[k] = rest
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// imageValues returns the values of the images. If both are in one registry, it is named once.
func (o Options) imageValues() map[string]any {
	worker, sensor := splitImage(o.Image), splitImage(o.SensorImage)
	registry, name := cutRegistry(worker["repository"])
	if other, sensorName := cutRegistry(sensor["repository"]); registry == other {
		worker["repository"], sensor["repository"] = name, sensorName
	} else {
		registry = ""
	}
	for _, image := range []map[string]any{worker, sensor} {
		if image["tag"] == o.Version { // the chart's default
			delete(image, "tag")
		}
	}
	return map[string]any{"registry": registry, "worker": worker, "sensor": sensor}
}

// cutRegistry returns the registry of a repository, with its path, and the rest.
func cutRegistry(repository any) (registry, name string) {
	text, _ := repository.(string)
	i := strings.LastIndex(text, "/")
	if i < 0 {
		return "", text
	}
	return text[:i], text[i+1:]
}

// splitImage splits an image's name into the values of the chart.
func splitImage(name string) map[string]any {
	if repository, digest, ok := strings.Cut(name, "@"); ok {
		return map[string]any{"repository": repository, "digest": digest}
	}
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		return map[string]any{"repository": name[:i], "tag": name[i+1:]}
	}
	return map[string]any{"repository": name}
}
