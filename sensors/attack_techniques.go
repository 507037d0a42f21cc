package sensors

import "slices"

// This file is the only source of ATT&CK names. It lists the techniques that Stanch's rules, health conditions and
// integrations name, with their names and tactics in MITRE ATT&CK for Enterprise v19.2 (https://attack.mitre.org).
// TestRuleTechniquesAreKnown fails when a rule names a technique that is missing here.
//
// To update it to a later version: change ATTACKVersion, compare each row with the technique's page at
// https://attack.mitre.org/techniques/, and add the revoked techniques to revokedATTACKTechniques.
//
// ATT&CK is © The MITRE Corporation. This work is reproduced and distributed with the permission of The MITRE
// Corporation.

// ATTACKVersion is the version of MITRE ATT&CK for Enterprise that the table follows.
const ATTACKVersion = "19.2"

// ATTACKTactic is an ATT&CK tactic: the goal of a technique.
type ATTACKTactic struct {
	ID   string // "TA0005"
	Name string // "Stealth"
}

// ATTACKTechnique is an ATT&CK technique with its name and its tactics, in the order of ATT&CK.
type ATTACKTechnique struct {
	Name    string
	Tactics []ATTACKTactic
}

// The tactics of ATT&CK v19.2 that the table uses. Version 19 split "Defense Evasion" into Stealth, which keeps its ID,
// and Defense Impairment.
var (
	tacticInitialAccess       = ATTACKTactic{"TA0001", "Initial Access"}
	tacticExecution           = ATTACKTactic{"TA0002", "Execution"}
	tacticPersistence         = ATTACKTactic{"TA0003", "Persistence"}
	tacticPrivilegeEscalation = ATTACKTactic{"TA0004", "Privilege Escalation"}
	tacticStealth             = ATTACKTactic{"TA0005", "Stealth"}
	tacticDefenseImpairment   = ATTACKTactic{"TA0112", "Defense Impairment"}
	tacticCredentialAccess    = ATTACKTactic{"TA0006", "Credential Access"}
	tacticDiscovery           = ATTACKTactic{"TA0007", "Discovery"}
	tacticLateralMovement     = ATTACKTactic{"TA0008", "Lateral Movement"}
	tacticCollection          = ATTACKTactic{"TA0009", "Collection"}
	tacticCommandControl      = ATTACKTactic{"TA0011", "Command and Control"}
	tacticExfiltration        = ATTACKTactic{"TA0010", "Exfiltration"}
	tacticImpact              = ATTACKTactic{"TA0040", "Impact"}
)

var attackTechniques = map[string]ATTACKTechnique{
	"T1003.007": {"OS Credential Dumping: Proc Filesystem", []ATTACKTactic{tacticCredentialAccess}},
	"T1003.008": {"OS Credential Dumping: /etc/passwd and /etc/shadow", []ATTACKTactic{tacticCredentialAccess}},
	"T1014":     {"Rootkit", []ATTACKTactic{tacticStealth}},
	"T1018":     {"Remote System Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1020":     {"Automated Exfiltration", []ATTACKTactic{tacticExfiltration}},
	"T1021":     {"Remote Services", []ATTACKTactic{tacticLateralMovement}},
	"T1021.004": {"Remote Services: SSH", []ATTACKTactic{tacticLateralMovement}},
	"T1027.002": {"Obfuscated Files or Information: Software Packing", []ATTACKTactic{tacticStealth}},
	"T1036":     {"Masquerading", []ATTACKTactic{tacticStealth}},
	"T1036.005": {"Masquerading: Match Legitimate Resource Name or Location", []ATTACKTactic{tacticStealth}},
	"T1037.004": {"Boot or Logon Initialization Scripts: RC Scripts", []ATTACKTactic{
		tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1040": {"Network Sniffing", []ATTACKTactic{tacticCredentialAccess, tacticDiscovery}},
	"T1041": {"Exfiltration Over C2 Channel", []ATTACKTactic{tacticExfiltration}},
	"T1046": {"Network Service Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1048": {"Exfiltration Over Alternative Protocol", []ATTACKTactic{tacticExfiltration}},
	"T1053.003": {"Scheduled Task/Job: Cron", []ATTACKTactic{
		tacticExecution, tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1055":     {"Process Injection", []ATTACKTactic{tacticStealth, tacticPrivilegeEscalation}},
	"T1055.008": {"Process Injection: Ptrace System Calls", []ATTACKTactic{tacticStealth, tacticPrivilegeEscalation}},
	"T1055.009": {"Process Injection: Proc Memory", []ATTACKTactic{tacticStealth, tacticPrivilegeEscalation}},
	"T1057":     {"Process Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1059":     {"Command and Scripting Interpreter", []ATTACKTactic{tacticExecution}},
	"T1059.004": {"Command and Scripting Interpreter: Unix Shell", []ATTACKTactic{tacticExecution}},
	"T1068":     {"Exploitation for Privilege Escalation", []ATTACKTactic{tacticPrivilegeEscalation}},
	"T1069":     {"Permission Groups Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1070":     {"Indicator Removal", []ATTACKTactic{tacticStealth}},
	"T1070.003": {"Indicator Removal: Clear Command History", []ATTACKTactic{tacticStealth}},
	"T1071":     {"Application Layer Protocol", []ATTACKTactic{tacticCommandControl}},
	"T1072":     {"Software Deployment Tools", []ATTACKTactic{tacticExecution, tacticLateralMovement}},
	"T1078.004": {"Valid Accounts: Cloud Accounts", []ATTACKTactic{
		tacticInitialAccess, tacticPersistence,
		tacticPrivilegeEscalation, tacticStealth,
	}},
	"T1082": {"System Information Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1083": {"File and Directory Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1090": {"Proxy", []ATTACKTactic{tacticCommandControl}},
	"T1098": {"Account Manipulation", []ATTACKTactic{tacticPersistence, tacticPrivilegeEscalation}},
	"T1098.001": {"Account Manipulation: Additional Cloud Credentials", []ATTACKTactic{
		tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1098.003": {"Account Manipulation: Additional Cloud Roles", []ATTACKTactic{
		tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1098.006": {"Account Manipulation: Additional Container Cluster Roles", []ATTACKTactic{
		tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1105":     {"Ingress Tool Transfer", []ATTACKTactic{tacticCommandControl}},
	"T1110":     {"Brute Force", []ATTACKTactic{tacticCredentialAccess}},
	"T1136":     {"Create Account", []ATTACKTactic{tacticPersistence}},
	"T1136.001": {"Create Account: Local Account", []ATTACKTactic{tacticPersistence}},
	"T1136.003": {"Create Account: Cloud Account", []ATTACKTactic{tacticPersistence}},
	"T1484.002": {"Domain or Tenant Policy Modification: Trust Modification", []ATTACKTactic{
		tacticPrivilegeEscalation,
		tacticDefenseImpairment,
	}},
	"T1485":     {"Data Destruction", []ATTACKTactic{tacticImpact}},
	"T1496":     {"Resource Hijacking", []ATTACKTactic{tacticImpact}},
	"T1496.001": {"Resource Hijacking: Compute Hijacking", []ATTACKTactic{tacticImpact}},
	"T1499.001": {"Endpoint Denial of Service: OS Exhaustion Flood", []ATTACKTactic{tacticImpact}},
	"T1528":     {"Steal Application Access Token", []ATTACKTactic{tacticCredentialAccess}},
	"T1530":     {"Data from Cloud Storage", []ATTACKTactic{tacticCollection}},
	"T1535":     {"Unused/Unsupported Cloud Regions", []ATTACKTactic{tacticStealth}},
	"T1537":     {"Transfer Data to Cloud Account", []ATTACKTactic{tacticExfiltration}},
	"T1543":     {"Create or Modify System Process", []ATTACKTactic{tacticPersistence, tacticPrivilegeEscalation}},
	"T1546.004": {"Event Triggered Execution: Unix Shell Configuration Modification", []ATTACKTactic{
		tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1547.006": {"Boot or Logon Autostart Execution: Kernel Modules and Extensions", []ATTACKTactic{
		tacticPersistence,
		tacticPrivilegeEscalation,
	}},
	"T1548":     {"Abuse Elevation Control Mechanism", []ATTACKTactic{tacticPrivilegeEscalation}},
	"T1548.001": {"Abuse Elevation Control Mechanism: Setuid and Setgid", []ATTACKTactic{tacticPrivilegeEscalation}},
	"T1548.003": {"Abuse Elevation Control Mechanism: Sudo and Sudo Caching", []ATTACKTactic{tacticPrivilegeEscalation}},
	"T1550":     {"Use Alternate Authentication Material", []ATTACKTactic{tacticLateralMovement}},
	"T1550.001": {
		"Use Alternate Authentication Material: Application Access Token",
		[]ATTACKTactic{tacticLateralMovement},
	},
	"T1552":     {"Unsecured Credentials", []ATTACKTactic{tacticCredentialAccess}},
	"T1552.001": {"Unsecured Credentials: Credentials In Files", []ATTACKTactic{tacticCredentialAccess}},
	"T1552.004": {"Unsecured Credentials: Private Keys", []ATTACKTactic{tacticCredentialAccess}},
	"T1552.005": {"Unsecured Credentials: Cloud Instance Metadata API", []ATTACKTactic{tacticCredentialAccess}},
	"T1552.007": {"Unsecured Credentials: Container API", []ATTACKTactic{tacticCredentialAccess}},
	"T1553.004": {"Subvert Trust Controls: Install Root Certificate", []ATTACKTactic{tacticDefenseImpairment}},
	"T1554":     {"Compromise Host Software Binary", []ATTACKTactic{tacticPersistence}},
	"T1555":     {"Credentials from Password Stores", []ATTACKTactic{tacticCredentialAccess}},
	"T1556.006": {"Modify Authentication Process: Multi-Factor Authentication", []ATTACKTactic{
		tacticCredentialAccess,
		tacticDefenseImpairment, tacticPersistence,
	}},
	"T1557":     {"Adversary-in-the-Middle", []ATTACKTactic{tacticCredentialAccess, tacticCollection}},
	"T1564.001": {"Hide Artifacts: Hidden Files and Directories", []ATTACKTactic{tacticStealth}},
	"T1571":     {"Non-Standard Port", []ATTACKTactic{tacticCommandControl}},
	"T1574":     {"Hijack Execution Flow", []ATTACKTactic{tacticExecution, tacticStealth}},
	"T1574.006": {"Hijack Execution Flow: Dynamic Linker Hijacking", []ATTACKTactic{tacticExecution, tacticStealth}},
	"T1578.002": {"Modify Cloud Compute Infrastructure: Create Cloud Instance", []ATTACKTactic{tacticDefenseImpairment}},
	"T1580":     {"Cloud Infrastructure Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1609":     {"Container Administration Command", []ATTACKTactic{tacticExecution}},
	"T1610":     {"Deploy Container", []ATTACKTactic{tacticExecution}},
	"T1611":     {"Escape to Host", []ATTACKTactic{tacticPrivilegeEscalation}},
	"T1613":     {"Container and Resource Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1619":     {"Cloud Storage Object Discovery", []ATTACKTactic{tacticDiscovery}},
	"T1620":     {"Reflective Code Loading", []ATTACKTactic{tacticStealth}},
	"T1622":     {"Debugger Evasion", []ATTACKTactic{tacticStealth, tacticDiscovery}},
	"T1651":     {"Cloud Administration Command", []ATTACKTactic{tacticExecution}},
	"T1685":     {"Disable or Modify Tools", []ATTACKTactic{tacticDefenseImpairment}},
	"T1685.002": {"Disable or Modify Tools: Disable or Modify Cloud Log", []ATTACKTactic{tacticDefenseImpairment}},
	"T1685.006": {"Disable or Modify Tools: Clear Linux or Mac System Logs", []ATTACKTactic{tacticDefenseImpairment}},
	"T1686.001": {"Disable or Modify System Firewall: Cloud Firewall", []ATTACKTactic{tacticDefenseImpairment}},
}

// revokedATTACKTechniques maps techniques that v19 revoked to their successors, because other sensors still report
// them.
var revokedATTACKTechniques = map[string]string{
	"T1562": "T1685", "T1562.001": "T1685", "T1562.006": "T1685", "T1562.007": "T1686.001", "T1562.008": "T1685.002",
	"T1070.002": "T1685.006",
}

// objectiveTactics maps an objective to its tactics, the most likely first.
var objectiveTactics = map[Objective][]ATTACKTactic{
	ObjectiveCryptoMining:     {tacticImpact},
	ObjectiveEscape:           {tacticPrivilegeEscalation},
	ObjectiveCredentialAccess: {tacticCredentialAccess},
	ObjectiveCommandControl:   {tacticCommandControl},
	ObjectiveExfiltration:     {tacticExfiltration},
	ObjectiveLateralMovement:  {tacticLateralMovement},
	ObjectivePersistence:      {tacticPersistence},
	ObjectiveDefenseEvasion:   {tacticStealth, tacticDefenseImpairment},
	ObjectiveExecution:        {tacticExecution},
	ObjectiveDiscovery:        {tacticDiscovery},
}

// LookupATTACKTechnique returns the technique with an ID such as "T1685.002". It follows revoked IDs to their
// successors, and returns false for an ID that is not in the table.
func LookupATTACKTechnique(id string) (ATTACKTechnique, bool) {
	if successor, revoked := revokedATTACKTechniques[id]; revoked {
		id = successor
	}
	t, ok := attackTechniques[id]
	return t, ok
}

// ATTACKTacticOf returns the tactic under which a detection is reported: the first tactic of the objective that the
// technique also has, otherwise the first tactic of the objective. The technique may be empty or unknown. It returns
// false for an unknown objective.
func ATTACKTacticOf(objective Objective, technique string) (ATTACKTactic, bool) {
	candidates := objectiveTactics[objective]
	if len(candidates) == 0 {
		return ATTACKTactic{}, false
	}
	t, _ := LookupATTACKTechnique(technique)
	for _, candidate := range candidates {
		if slices.Contains(t.Tactics, candidate) {
			return candidate, true
		}
	}
	return candidates[0], true
}
