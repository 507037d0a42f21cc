package config

import (
	"fmt"
	"os"
	"reflect"
	"sync"
	"time"
)

// Roster is who may answer now: the people of the configuration file as it is at this moment. Somebody who was taken
// off the list a second ago may not answer any more, without a restart.
type Roster struct {
	// File is the configuration's; "" keeps to what was given.
	File string

	mu                  sync.Mutex
	current             *Config
	initial             *Config  // the file as it was at the start; nil if it could not be read
	restartRequiredKeys []string // keys of the file that differ from it, and need a restart
	modTime             time.Time
	fileSize            int64
}

// NewRoster starts with a configuration that was read from file; file may be "".
func NewRoster(c *Config, file string) *Roster {
	r := &Roster{File: file, current: c}
	if file != "" {
		if began, problems, err := Load(file); err == nil && !problems.HasErrors() {
			r.initial = began
		}
	}
	return r
}

// RestartRequiredKeys lists the keys of the file whose change takes a restart: all but those of people and groups.
func (r *Roster) RestartRequiredKeys() []string {
	_, _ = r.Current() // whoever asks for it reports what is wrong with the file
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.restartRequiredKeys
}

// changedKeys lists the keys that differ, without those that are read anew.
func changedKeys(a, b *Config) []string {
	if a == nil {
		return nil
	}
	var keys []string
	for i, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		key := f.Tag.Get("yaml")
		if key != "people" && key != "groups" && !reflect.DeepEqual(reflect.ValueOf(*a).Field(i).Interface(), reflect.ValueOf(*b).Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
}

// LastRead is what was read last, for who needs nobody's leave.
func (r *Roster) LastRead() *Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// Current reads the file again if it has changed. A file that is damaged or gone is an error: whoever asks must fail
// closed, since nobody can tell who is on the list.
func (r *Roster) Current() (*Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.File == "" {
		return r.current, nil
	}
	info, err := os.Stat(r.File)
	if err != nil {
		return nil, fmt.Errorf("who may answer is not known: %w", err)
	}
	if info.ModTime().Equal(r.modTime) && info.Size() == r.fileSize {
		return r.current, nil
	}
	c, problems, err := Load(r.File)
	if err == nil {
		err = problems.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("who may answer is not known: %w", err)
	}
	// The rest of the configuration stays as it was when this process started.
	next := *r.current
	next.People, next.Groups = c.People, c.Groups
	r.restartRequiredKeys = changedKeys(r.initial, c)
	r.current, r.modTime, r.fileSize = &next, info.ModTime(), info.Size()
	return r.current, nil
}
