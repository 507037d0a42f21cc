package config

import (
	"fmt"
	"os"
	"reflect"
	"sync"
	"time"
)

// Roster contains the people who may vote now: those in the current configuration file. A person who was removed from
// the file may not vote anymore, without a restart. It is safe for concurrent use.
type Roster struct {
	// File is the configuration file; "" uses the initial configuration.
	File string

	mu                  sync.Mutex
	current             *Config
	initial             *Config  // the file at the start; nil if it could not be read
	restartRequiredKeys []string // changed keys of the file that need a restart
	modTime             time.Time
	fileSize            int64
}

// NewRoster returns a roster with a configuration that was read from file; file may be "".
func NewRoster(c *Config, file string) *Roster {
	r := &Roster{File: file, current: c}
	if file != "" {
		if began, problems, err := Load(file); err == nil && !problems.HasErrors() {
			r.initial = began
		}
	}
	return r
}

// RestartRequiredKeys returns the changed keys of the file that need a restart: all except people and groups.
func (r *Roster) RestartRequiredKeys() []string {
	_, _ = r.Current() // callers of Current report errors of the file
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.restartRequiredKeys
}

// changedKeys returns the keys that differ, except those that are reloaded.
func changedKeys(a, b *Config) []string {
	if a == nil {
		return nil
	}
	var keys []string
	for i, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		key := f.Tag.Get("yaml")
		if key != "people" && key != "groups" && !reflect.DeepEqual(reflect.ValueOf(*a).Field(i).Interface(),
			reflect.ValueOf(*b).Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
}

// LastRead returns the last valid configuration, for callers who need no entitlement.
func (r *Roster) LastRead() *Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// Current returns the current configuration, and reads the file again if it has changed. It returns an error if the
// file is invalid or missing: callers must then refuse, because nobody's entitlement is known.
func (r *Roster) Current() (*Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.File == "" {
		return r.current, nil
	}
	info, err := os.Stat(r.File)
	if err != nil {
		return nil, fmt.Errorf("read the approvers: %w", err)
	}
	if info.ModTime().Equal(r.modTime) && info.Size() == r.fileSize {
		return r.current, nil
	}
	c, problems, err := Load(r.File)
	if err == nil {
		err = problems.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("read the approvers: %w", err)
	}
	// The other settings stay as they were at the start of this process.
	next := *r.current
	next.People, next.Groups = c.People, c.Groups
	r.restartRequiredKeys = changedKeys(r.initial, c)
	r.current, r.modTime, r.fileSize = &next, info.ModTime(), info.Size()
	return r.current, nil
}
