use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replication::AlarmKind;

/// `[[hooks]]`: who is told of alarms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookConfig {
    /// Of which.
    pub on: Vec<AlarmKind>,
    /// A program and its arguments; JSON comes on its standard input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Where JSON is posted; `env:NAME` or `file:PATH` where the URL is a secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub webhook: String,
    /// Headers of the post. Values are `env:NAME` or `file:PATH` where they are secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Seconds in which one alarm of a kind and subject is told at most once.
    #[serde(default = "an_hour")]
    pub interval_s: u64,
    /// Seconds that one telling may take.
    #[serde(default = "half_a_minute")]
    pub deadline_s: u64,
}

fn an_hour() -> u64 {
    3600
}

fn half_a_minute() -> u64 {
    30
}

impl HookConfig {
    /// What is wrong with it.
    ///
    /// # Errors
    /// Words for people.
    pub fn check(&self) -> Result<(), String> {
        if self.on.is_empty() {
            let kinds = AlarmKind::ALL.map(AlarmKind::as_str).join(", ");
            return Err(format!("a hook's `on` names no alarm; there are: {kinds}"));
        }
        match (self.command.first(), self.webhook.is_empty()) {
            (Some(_), false) => return Err("a hook has a command or a webhook, not both".into()),
            (None, true) => return Err("a hook needs a `command` or a `webhook`".into()),
            (Some(program), true) if !program.starts_with('/') => {
                return Err(format!(
                    "the hook's command `{program}` is no absolute path: it runs in the folder /"
                ));
            }
            (None, false) => {
                let schemes = ["https://", "http://", "env:", "file:/"];
                if !schemes.iter().any(|scheme| self.webhook.starts_with(scheme)) {
                    return Err("a webhook is a URL (https://..), env:NAME or file:/PATH".into());
                }
            }
            (Some(_), true) => {}
        }
        if !self.command.is_empty() && !self.headers.is_empty() {
            return Err("a hook's headers are for a webhook".into());
        }
        for (name, value) in &self.headers {
            let secret = value.starts_with("env:") || value.starts_with("file:/");
            if !secret && name.eq_ignore_ascii_case("authorization") {
                return Err(
                    "write the value of Authorization as env:NAME or file:/PATH, not into cairn.toml".into(),
                );
            }
        }
        if self.deadline_s == 0 || self.deadline_s > 3600 {
            return Err("a hook's deadline_s is 1 to 3600".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        toml::from_str::<HookConfig>(text).map_err(|e| e.to_string())?.check()
    }

    #[test]
    fn a_hook_says_what_is_wrong_with_it() {
        check("on = [\"corrupt\"]\ncommand = [\"/bin/true\"]").unwrap();
        check("on = [\"cost\"]\nwebhook = \"https://x/\"\nheaders = { Authorization = \"env:X\" }")
            .unwrap();
        for (text, wanted) in [
            ("on = []\ncommand = [\"/x\"]", "there are: below_min"),
            ("on = [\"fire\"]\ncommand = [\"/x\"]", "backend_down"),
            ("on = [\"cost\"]", "needs a `command`"),
            ("on = [\"cost\"]\ncommand = [\"x\"]", "no absolute path"),
            ("on = [\"cost\"]\ncommand = [\"/x\"]\nwebhook = \"http://x\"", "not both"),
            ("on = [\"cost\"]\nwebhook = \"ftp://x\"", "https://"),
            ("on = [\"cost\"]\ncommand = [\"/x\"]\nheaders = { A = \"b\" }", "for a webhook"),
            (
                "on = [\"cost\"]\nwebhook = \"https://x\"\nheaders = { authorization = \"y\" }",
                "env:NAME",
            ),
            ("on = [\"cost\"]\ncommand = [\"/x\"]\ndeadline_s = 0", "1 to 3600"),
            ("on = [\"cost\"]\ncommand = [\"/x\"]\nrate = 1", "unknown field"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
