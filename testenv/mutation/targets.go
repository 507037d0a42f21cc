package main

// target is code that decides something that must not be wrong, with the tests that hold it.
type target struct {
	Name   string
	Files  []source
	Suites []suite // from cheap to expensive; a mutant that survives one is given to the next that reaches it
}

// source is a set of files of one package, relative to the root of the project.
type source struct {
	Dir       string
	Files     []string
	Functions []string // the functions that are changed; nil means all
}

// suite is the tests of one package whose names match a regular expression; "" means all.
type suite struct {
	Package string
	Run     string
}

func targets() []target {
	return []target{
		{
			Name: "attestation",
			Files: []source{{Dir: "sensors/attestation", Files: []string{
				"drill.go", "envelope.go", "keyset.go", "statements.go",
			}}},
			Suites: []suite{{Package: "./sensors/attestation"}},
		},
		{
			Name:   "lease",
			Files:  []source{{Dir: "workflows/lease", Files: []string{"machine.go", "report.go"}}},
			Suites: []suite{{Package: "./workflows/lease"}},
		},
		{
			Name: "guards",
			Files: []source{{Dir: "worker/guards", Files: []string{
				"budget_window.go", "checks.go", "file_kill_switch.go", "guards.go", "protection.go", "shared_kill_switch.go",
				"signed_state.go", "target_checks.go", "used_grants.go",
			}}},
			Suites: []suite{{Package: "./worker/guards"}},
		},
		{
			Name: "approvals",
			Files: []source{
				{Dir: "activities", Files: []string{"approvals.go", "approval_request.go"}},
				{Dir: "playbooks", Files: []string{"approvers.go"}},
			},
			Suites: []suite{{Package: "./activities", Run: "Vote|Approv|Grant|Plan|Request|BreakGlass|Receipt"}},
		},
		{
			Name:   "decisions",
			Files:  []source{{Dir: "worker/decisions", Files: []string{"approver_exclusion.go", "service.go"}}},
			Suites: []suite{{Package: "./worker/decisions", Run: "^Test(Decision|Person|Invalid|Pause|Triage|Approvers|Only)"}},
		},
		{
			// The functions that plan inside of an approval are left out: only the tests of the interpreter run them, and
			// those take most of a minute for each mutant.
			Name: "approval-workflow",
			Files: []source{{Dir: "workflows/playbook", Files: []string{"approval.go"}, Functions: []string{
				"playbookRun.receiveVote", "voteContentOf", "playbookRun.yieldToVoteReceiver",
				"playbookRun.requestMessageSync", "playbookRun.waitForApproval",
				"playbookRun.countVotes", "plannedActions.addPlan", "plannedActions.runnableIfApproved",
				"plannedActions.findPlan", "playbookRun.attestationsFor", "playbookRun.allEvidenceReceipts",
			}}},
			Suites: []suite{{Package: "./workflows/playbook"}},
		},
	}
}
