//! Join tokens: `BRAMBLE-1-<SHA-256 of the CA certificate>-<secret>`, both in lower-case hex.
//!
//! The first part lets the joiner recognise the cluster before it trusts anything; the second proves to the cluster
//! that an administrator asked for this joiner. The cluster keeps only the secret's SHA-256.

use std::fmt;
use std::str::FromStr;

use rand::TryRngCore;
use sha2::{Digest, Sha256};

/// Bytes of a secret.
const SECRET_BYTES: usize = 20;
/// Starts every token; the number is the format's version.
const PREFIX: &str = "BRAMBLE-1-";

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the cluster CA's certificate (DER).
    pub ca_fingerprint: [u8; 32],
    /// The secret, as text.
    pub secret: String,
}

/// The text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: copy the whole line that starts with BRAMBLE-1- (make one with `bramble token`)"
)]
pub struct TokenSyntax;

impl JoinToken {
    /// Makes a token with a fresh secret from the operating system's random numbers.
    ///
    /// # Errors
    /// If the operating system has none.
    pub fn generate(ca_fingerprint: [u8; 32]) -> Result<Self, rand::rand_core::OsError> {
        let mut secret = [0; SECRET_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut secret)?;
        Ok(Self {
            ca_fingerprint,
            secret: hex(&secret),
        })
    }

    /// What the cluster keeps of the secret.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        hash_secret(&self.secret)
    }
}

/// SHA-256 of a token's secret.
#[must_use]
pub fn hash_secret(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", hex(&self.ca_fingerprint), self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of logs.
        write!(f, "JoinToken({}...)", hex(&self.ca_fingerprint[..4]))
    }
}

impl FromStr for JoinToken {
    type Err = TokenSyntax;

    fn from_str(text: &str) -> Result<Self, TokenSyntax> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(TokenSyntax)?;
        let (fingerprint, secret) = rest.split_once('-').ok_or(TokenSyntax)?;
        let ca_fingerprint = unhex(fingerprint)
            .and_then(|b| b.try_into().ok())
            .ok_or(TokenSyntax)?;
        let secret_ok = unhex(secret).is_some_and(|bytes| bytes.len() == SECRET_BYTES);
        if !secret_ok {
            return Err(TokenSyntax);
        }
        Ok(Self {
            ca_fingerprint,
            secret: secret.to_owned(),
        })
    }
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .bytes()
        .map(|b| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        })
        .collect::<Option<_>>()?;
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip() {
        let token = JoinToken::generate([0xa5; 32]).unwrap();
        let read: JoinToken = format!("  {token}\n").parse().unwrap();
        assert!(read == token);
        assert_eq!(read.hash(), hash_secret(&token.secret));
    }

    #[test]
    fn secrets_differ_and_stay_out_of_debug_output() {
        let (a, b) = (
            JoinToken::generate([1; 32]).unwrap(),
            JoinToken::generate([1; 32]).unwrap(),
        );
        assert_ne!(a.secret, b.secret);
        assert!(!format!("{a:?}").contains(&a.secret));
    }

    #[test]
    fn garbage_is_refused() {
        let good = JoinToken::generate([7; 32]).unwrap().to_string();
        for text in [
            "",
            "BRAMBLE-1-",
            "BRAMBLE-2-00-00",
            &good[..good.len() - 1],
            &good[1..],
            &good.to_lowercase(),
        ] {
            assert_eq!(text.parse::<JoinToken>().unwrap_err(), TokenSyntax, "{text}");
        }
        assert!(format!("{good}00").parse::<JoinToken>().is_err());
    }
}
