//! A change of a policy as the audit log tells it.

use tonic::{Code, Status};

use crate::identity::Caller;
use crate::identity::audit::{Entry, Outcome};

/// Longest reason of a refusal in the log, in bytes: a policy may have many errors.
const MAX_REASON_BYTES: usize = 1024;

/// What is known of a change so far.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) action: &'static str,
    pub(crate) policy: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) previous_version: Option<String>,
}

// === impl Change ===

impl Change {
    pub(crate) fn new(action: &'static str) -> Self {
        Self { action, ..Self::default() }
    }

    /// Records what came of it. A missing role has been recorded by the caller itself.
    pub(crate) fn record(&self, caller: &Caller, outcome: Result<Outcome, &Status>) {
        let (outcome, reason) = match outcome {
            Ok(outcome) => (outcome, None),
            Err(status) if status.code() == Code::PermissionDenied => return,
            Err(status) => (Outcome::Refused, Some(beginning(status.message()))),
        };
        caller.audit(&Entry {
            action: self.action,
            outcome,
            policy: self.policy.as_deref(),
            version: self.version.as_deref(),
            previous_version: self.previous_version.as_deref(),
            reason,
            ..Entry::default()
        });
    }
}

fn beginning(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_REASON_BYTES)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}
