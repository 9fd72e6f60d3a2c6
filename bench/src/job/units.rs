//! Numbers as fio writes them.

use std::time::Duration;

/// Bytes: `512`, `4k`, `1m`, `2g`, `1t`, also `4kb` and `4kib`; k is 1024.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = split(&lower);
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    if unit.ends_with("bb") || unit.ends_with('i') {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A time; a bare number counts in `bare`.
pub(super) fn time(text: &str, bare: Duration) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = split(&lower);
    let unit = match unit {
        "" => bare,
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    unit.checked_mul(digits.parse().ok()?)
}

/// `1` or `0`; an option without a value is true.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "" | "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}
