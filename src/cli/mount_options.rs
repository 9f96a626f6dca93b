//! Words after `-o`, as mount(8) and fstab pass them.

use super::error::CliError;

/// What `-o` asks for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct MountWords {
    pub read_only: bool,
    pub allow_other: bool,
    /// Passed on to the kernel.
    pub kernel: Vec<String>,
    /// Parts of the policy, in its text form.
    pub policy: String,
    /// `volume=`.
    pub volume: Option<String>,
}

/// Words for fstab readers and helpers, not for us.
const IGNORED: &[&str] =
    &["defaults", "_netdev", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "rw", "dev_name"];
const KERNEL: &[&str] = &[
    "noatime", "atime", "relatime", "norelatime", "strictatime", "nodiratime", "nosuid", "suid", "nodev", "dev",
    "noexec", "exec", "sync", "async", "dirsync",
];
const POLICY: &[&str] = &["level", "wait_on", "on_degraded", "min", "target", "max"];

/// Reads options; later words win over earlier ones.
pub(super) fn parse(options: &[String]) -> Result<MountWords, CliError> {
    let mut words = MountWords::default();
    for word in options.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty()) {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("ro", None) => words.read_only = true,
            ("rw", None) => words.read_only = false,
            ("allow_other", None) => words.allow_other = true,
            ("volume", Some(volume)) => words.volume = Some(volume.to_owned()),
            (key, Some(_)) if POLICY.contains(&key) => {
                if !words.policy.is_empty() {
                    words.policy.push(',');
                }
                words.policy.push_str(word);
            }
            (key, None) if KERNEL.contains(&key) => words.kernel.push(key.to_owned()),
            (key, None) if IGNORED.contains(&key) => {}
            (key, _) if key.starts_with("x-") || key.starts_with("X-") || key == "comment" => {}
            _ => {
                let known = format!("ro, rw, allow_other, volume=, {}=, {}", POLICY.join("=, "), KERNEL.join(", "));
                return Err(CliError::usage(format!("mount option `{}` is not known", word.escape_debug()))
                    .hint(format!("known are {known}; and, ignored, {} and x-*", IGNORED.join(", "))));
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> MountWords {
        parse(&[text.to_owned()]).unwrap()
    }

    #[test]
    fn words_of_fstab_are_taken_or_ignored() {
        let words = parsed("defaults,noatime,_netdev,nofail,x-systemd.automount,user,ro,nosuid");
        assert!(words.read_only);
        assert_eq!(words.kernel, ["noatime", "nosuid"]);
        assert_eq!(words.policy, "");
    }

    #[test]
    fn parts_of_the_policy_are_collected_in_order() {
        let words = parse(&["level=ALL,min=1".to_owned(), "wait_on=fsync".to_owned()]).unwrap();
        assert_eq!(words.policy, "level=ALL,min=1,wait_on=fsync");
    }

    #[test]
    fn the_last_of_ro_and_rw_wins() {
        assert!(!parsed("ro,rw").read_only);
        assert!(parsed("rw,ro").read_only);
    }

    #[test]
    fn an_unknown_word_names_the_known_ones() {
        let error = parse(&["noatme".to_owned()]).unwrap_err();
        assert!(error.message.contains("`noatme`") && error.hint.contains("noatime"), "{error:?}");
    }
}
