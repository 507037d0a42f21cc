package probe

import (
	"path"
	"strings"
)

// The classes of sensitive files, as sensors.File.Sensitive names them.
const (
	sensitiveToken  = "service-account-token"
	sensitiveShadow = "shadow"
	sensitiveCloud  = "cloud-credentials"
)

// sensitiveNames are the base names that the kernel lets through; sensitiveClass decides by the whole path.
var sensitiveNames = []string{
	"token", "shadow", "gshadow", "shadow-",
	"credentials", "application_default_credentials.json", "credentials.db", "access_tokens.db", "legacy_credentials",
	"accessTokens.json", "msal_token_cache.json", "msal_token_cache.bin", "azureProfile.json", "service_principal_entries.json",
	"azure-identity-token", "eks-pod-identity-token",
}

// sensitiveClass names the class of a file by the path that the kernel resolved, or "" if it is none.
func sensitiveClass(p string) string {
	base, dir := path.Base(p), path.Dir(p)
	in := func(parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(dir+"/", part) {
				return true
			}
		}
		return false
	}
	switch base {
	case "shadow", "gshadow", "shadow-":
		if dir == "/etc" {
			return sensitiveShadow
		}
	case "token", "azure-identity-token", "eks-pod-identity-token":
		// A projected volume resolves to …/..2026_01_02_03_04_05.123/token.
		if in("/serviceaccount/", "/kubernetes.io/", "/eks.amazonaws.com/", "/azure/tokens/", "/pods.eks.amazonaws.com/") ||
			strings.HasPrefix(path.Base(dir), "..2") {
			return sensitiveToken
		}
	case "credentials":
		if in("/.aws/") {
			return sensitiveCloud
		}
	case "application_default_credentials.json", "credentials.db", "access_tokens.db", "legacy_credentials":
		if in("/gcloud/") {
			return sensitiveCloud
		}
	default:
		if in("/.azure/") {
			return sensitiveCloud
		}
	}
	return ""
}
