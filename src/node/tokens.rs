//! Who may do what at a node.

use std::collections::HashMap;

use crate::backends::peer::wire::Role;
use crate::types::cid;

/// A shorter one could be guessed.
const SHORTEST: usize = 16;

/// Tokens by their hash: a look-up says nothing of how much of a token was right.
#[derive(Debug, Default)]
pub(super) struct Tokens(HashMap<[u8; 32], Role>);

impl Tokens {
    /// Reads lines `ROLE TOKEN`; `#` begins a comment.
    ///
    /// # Errors
    /// With the line and what is wrong, without the token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(role) = words.next() else { continue };
            let role = [Role::Read, Role::Write, Role::Admin]
                .into_iter()
                .find(|known| known.as_str() == role)
                .ok_or_else(|| format!("line {number}: write read, write or admin, and a token"))?;
            let (Some(token), None) = (words.next(), words.next()) else {
                return Err(format!("line {number}: one token stands after the role"));
            };
            if token.len() < SHORTEST {
                return Err(format!(
                    "line {number}: a token has {SHORTEST} characters at least; `openssl rand -hex 32` makes one"
                ));
            }
            if tokens.insert(cid::sha256(token.as_bytes()), role).is_some() {
                return Err(format!("line {number}: the token stands twice"));
            }
        }
        if tokens.is_empty() {
            return Err("there is no token in it: write `admin TOKEN`".to_owned());
        }
        Ok(Self(tokens))
    }

    /// What a token allows.
    pub fn role_of(&self, token: &str) -> Option<Role> {
        self.0.get(&cid::sha256(token.as_bytes())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_role_and_a_token() {
        let text = "# who\nread 0123456789abcdef\n\n admin   fedcba9876543210  # me\n";
        let tokens = Tokens::parse(text).unwrap();
        assert_eq!(tokens.role_of("0123456789abcdef"), Some(Role::Read));
        assert_eq!(tokens.role_of("fedcba9876543210"), Some(Role::Admin));
        assert_eq!(tokens.role_of("0123456789abcdeg"), None);
        assert_eq!(tokens.role_of(""), None);
        for (bad, hint) in [
            ("", "no token"),
            ("# nothing", "no token"),
            ("root 0123456789abcdef", "line 1"),
            ("read", "one token"),
            ("read short", "openssl"),
            ("read 0123456789abcdef more", "one token"),
            ("read 0123456789abcdef\nadmin 0123456789abcdef", "line 2"),
        ] {
            let said = Tokens::parse(bad).unwrap_err();
            assert!(said.contains(hint) && !said.contains("0123456789"), "{bad}: {said}");
        }
    }
}
