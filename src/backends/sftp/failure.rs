//! What went wrong on the way to a server or there, and what its owner can do.

use russh_sftp::protocol::StatusCode;

use crate::backends::web::said;
use crate::backends::{BackendError, ErrorKind};

/// Why something was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    /// The server said no (draft-ietf-secsh-filexfer-02, section 7).
    #[error("{0}: {1}")]
    Status(StatusCode, String),
    /// No answer within the time.
    #[error("no answer in time")]
    Late,
    /// There is no connection, or no more: what `ssh` said, or the library.
    #[error("{0}")]
    Broken(String),
    /// The file ended before what was asked for.
    #[error("the file ends before what was asked for")]
    Short,
    /// Larger than any that is ours, or no file.
    #[error("it is larger than any block, or not a file")]
    TooLong,
    /// A folder with more than anybody puts into one.
    #[error("a folder there has more than a million entries")]
    TooMany,
    /// There is no `ssh` on this machine.
    #[error("there is no `ssh` on this machine")]
    NoSsh,
}

/// What `ssh` says before it ends, what it means, and what to do.
const WORDS: [(&str, ErrorKind, &str); 12] = [
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        ErrorKind::Denied,
        "its key is another one than before: if that is right, `ssh-keygen -R HOST` and connect \
         once with `ssh`",
    ),
    (
        "Host key verification failed",
        ErrorKind::Denied,
        "its key is not known here: connect once with `ssh` as the user of this daemon and look \
         at it, or write known_hosts=/file",
    ),
    (
        "Permission denied",
        ErrorKind::Denied,
        "no key of ours is let in: write identity=/path/of/key (a key without a passphrase, or one \
         that the agent has) and look at authorized_keys there",
    ),
    (
        "Too many authentication failures",
        ErrorKind::Denied,
        "the agent offers too many keys: write identity=/path/of/key",
    ),
    ("Bad owner or permissions", ErrorKind::Denied, "only its owner may write SSH's settings"),
    (
        "subsystem request failed",
        ErrorKind::Unsupported,
        "the server has no SFTP: switch on `Subsystem sftp` in its sshd_config",
    ),
    (
        "Could not resolve hostname",
        ErrorKind::Unavailable,
        "its host has no address: is it written right, does DNS work?",
    ),
    (
        "Connection refused",
        ErrorKind::Unavailable,
        "nobody listens there: does sshd run, are host and port right?",
    ),
    ("No route to host", ErrorKind::Unavailable, "is the machine up, is the network?"),
    ("Network is unreachable", ErrorKind::Unavailable, "is the network up?"),
    ("timed out", ErrorKind::Unavailable, "is the machine up, is the network?"),
    (
        "Bad configuration option",
        ErrorKind::Invalid,
        "ssh does not take its settings: look at ~/.ssh/config",
    ),
];

impl Failure {
    fn kind_and_hint(&self) -> (ErrorKind, &'static str) {
        use StatusCode::{NoSuchFile, OpUnsupported, PermissionDenied};
        match self {
            Self::Status(PermissionDenied, _) => {
                (ErrorKind::Denied, "look at owner and mode of the folder there")
            }
            Self::Status(NoSuchFile, _) => {
                (ErrorKind::Unavailable, "the folder is gone: is its disk mounted there?")
            }
            Self::Status(OpUnsupported, _) => {
                (ErrorKind::Unsupported, "the server cannot do this: OpenSSH's can")
            }
            Self::Status(..) => (
                ErrorKind::Other,
                "the server says no more: look at its disk and at its log; it is tried again",
            ),
            Self::Late => (ErrorKind::Timeout, "is the network up, does its disk answer?"),
            Self::Broken(text) => {
                let known = WORDS.iter().find(|(word, ..)| text.contains(word));
                known.map_or(
                    (ErrorKind::Other, "the connection broke off: it is tried again"),
                    |(_, kind, hint)| (*kind, *hint),
                )
            }
            Self::Short | Self::TooLong => {
                (ErrorKind::Corrupt, "the copy is looked at and brought anew")
            }
            Self::TooMany => (ErrorKind::Invalid, "is it a folder of its own?"),
            Self::NoSsh => (ErrorKind::Invalid, "install OpenSSH's client (openssh-client)"),
        }
    }

    /// Whether nothing is at the path.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Status(StatusCode::NoSuchFile, _))
    }

    /// Whether the server gave no reason.
    pub fn is_mute(&self) -> bool {
        matches!(self, Self::Status(StatusCode::Failure, _))
    }
}

/// The error of a backend: `cannot ACTION PLACE: what happened; what to do`.
pub(super) fn explain(at: &str, action: &str, failure: Failure) -> BackendError {
    let (kind, hint) = failure.kind_and_hint();
    let text = match &failure {
        // The same twice: OpenSSH's message is the name of the status.
        Failure::Status(code, message) if code.to_string() == *message => said(message),
        other => said(&other.to_string()),
    };
    BackendError::new(kind, format!("cannot {action} {at}: {text}; {hint}")).caused_by(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_has_its_kind_and_says_what_to_do() {
        use ErrorKind::{Corrupt, Denied, Invalid, Other, Timeout, Unavailable, Unsupported};
        let broken = |text: &str| Failure::Broken(text.to_owned());
        let status = |code: StatusCode| Failure::Status(code, code.to_string());
        for (failure, kind, hint) in [
            (status(StatusCode::PermissionDenied), Denied, "owner and mode"),
            (status(StatusCode::NoSuchFile), Unavailable, "mounted"),
            (status(StatusCode::OpUnsupported), Unsupported, "OpenSSH"),
            (status(StatusCode::Failure), Other, "log"),
            (Failure::Late, Timeout, "network"),
            (Failure::Short, Corrupt, "anew"),
            (Failure::TooLong, Corrupt, "anew"),
            (Failure::TooMany, Invalid, "of its own"),
            (Failure::NoSsh, Invalid, "openssh-client"),
            (broken("u@h: Permission denied (publickey)."), Denied, "identity="),
            (broken("Host key verification failed."), Denied, "known_hosts="),
            (
                broken("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @"),
                Denied,
                "ssh-keygen -R",
            ),
            (broken("ssh: Could not resolve hostname h: x"), Unavailable, "DNS"),
            (broken("connect to host h port 1: Connection refused"), Unavailable, "sshd"),
            (broken("connect to host h port 1: Connection timed out"), Unavailable, "network"),
            (broken("subsystem request failed on channel 0"), Unsupported, "Subsystem sftp"),
            (broken("the connection ended"), Other, "tried again"),
        ] {
            let error = explain("sftp://h/x", "reach", failure.clone());
            assert_eq!(error.kind, kind, "{failure:?}");
            assert!(error.message.contains(hint), "{error}");
            assert!(error.message.starts_with("cannot reach sftp://h/x: "), "{error}");
            assert_eq!(error.message.lines().count(), 1, "{error}");
        }
    }
}
