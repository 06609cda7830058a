//! Lists of CPUs.

#![forbid(unsafe_code)]

/// CPUs in the form of /sys: `2-3,5`.
pub(super) fn cpu_list(text: &str) -> Vec<u32> {
    let mut out = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) {
            out.extend(from..=to.min(from.saturating_add(4096)));
        }
    }
    out
}
