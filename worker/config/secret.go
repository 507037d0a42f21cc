package config

import (
	"fmt"
	"os"
	"strings"
)

// ReadSecretFile returns the secret in a file, without surrounding white space. key is the configuration's key, for
// errors. An empty file is an error.
func ReadSecretFile(key, path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	secret := strings.TrimSpace(string(raw))
	if secret == "" {
		return "", fmt.Errorf("%s: %s is empty", key, path)
	}
	return secret, nil
}
