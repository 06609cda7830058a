//! Network XML of libvirt: a bridge of the host with addresses for guests.

#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::element::{Element, legal};
use crate::diag::shown;

/// How guests reach the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forward {
    /// Through the host's address.
    #[default]
    Nat,
    /// With their own addresses; the world must know the way back.
    Route,
    /// Not at all: guests reach each other and the host.
    Isolated,
}

/// Which addresses the host hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dhcp {
    /// As many as there are on the larger side of the host's own address.
    #[default]
    Auto,
    /// None; guests have their own.
    None,
    /// From the first to the second, both included.
    Range(Ipv4Addr, Ipv4Addr),
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Name of the network.
    pub name: String,
    /// Name of the bridge; libvirt chooses one when there is none.
    pub bridge: Option<String>,
    /// How guests reach the world.
    pub forward: Forward,
    /// The host's address on the bridge.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// What the host hands out.
    pub dhcp: Dhcp,
    /// DNS domain of the guests.
    pub domain: Option<String>,
}

/// Why there is no such network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not `key=value`.
    #[error("`{}` is not of the form key=value", shown(.0))]
    Word(String),
    /// No such key.
    #[error("`{}` is no key of a network; there are {keys}", shown(.0), keys = KEYS.join(", "))]
    Key(String),
    /// Twice.
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    /// A value that cannot be.
    #[error("{key}={}: {expected}", shown(value))]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A network without a name.
    #[error("a network needs a name: name=NAME")]
    Nameless,
    /// Too few addresses to hand any out.
    #[error("{0}/{1} leaves no address for a guest; dhcp=none hands out none")]
    Full(Ipv4Addr, u8),
}

const KEYS: [&str; 6] = ["name", "bridge", "address", "dhcp", "forward", "domain"];

/// Most addresses in one range: libvirt refuses more (virSocketAddrGetRange).
const MAX_RANGE: u32 = 65535;

/// Longest name of a network interface of Linux (IFNAMSIZ less its end).
const MAX_INTERFACE: usize = 15;

fn value(key: &'static str, value: impl ToString, expected: impl Into<String>) -> NetworkError {
    NetworkError::Value {
        key,
        value: value.to_string(),
        expected: expected.into(),
    }
}

impl NetworkSpec {
    /// A network of a name with everything else as recommended: NAT, 192.168.77.1/24, all its addresses handed out.
    pub fn named(name: &str) -> Self {
        NetworkSpec {
            name: name.to_owned(),
            bridge: None,
            forward: Forward::Nat,
            address: Ipv4Addr::new(192, 168, 77, 1),
            prefix: 24,
            dhcp: Dhcp::Auto,
            domain: None,
        }
    }

    /// Reads `name=preset bridge=virbr7 address=192.168.77.1/24 dhcp=192.168.77.2-192.168.77.254 forward=nat
    /// domain=example.org`; `dhcp` may also be `auto` or `none`. What is missing is as in [`NetworkSpec::named`].
    ///
    /// # Errors
    /// A word is not understood, or the network cannot be.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, NetworkError> {
        let mut spec = NetworkSpec::named("");
        let mut seen = Vec::new();
        for word in words {
            let word = word.as_ref();
            let (key, text) = word
                .split_once('=')
                .ok_or_else(|| NetworkError::Word(word.to_owned()))?;
            let known = KEYS.iter().find(|k| **k == key);
            let key = *known.ok_or_else(|| NetworkError::Key(key.to_owned()))?;
            if seen.contains(&key) {
                return Err(NetworkError::Twice(key));
            }
            seen.push(key);
            spec.set(key, text)?;
        }
        if !seen.contains(&"name") {
            return Err(NetworkError::Nameless);
        }
        spec.check()?;
        Ok(spec)
    }

    fn set(&mut self, key: &'static str, text: &str) -> Result<(), NetworkError> {
        match key {
            "name" => text.clone_into(&mut self.name),
            "bridge" => self.bridge = Some(text.to_owned()),
            "domain" => self.domain = Some(text.to_owned()),
            "forward" => {
                self.forward = match text {
                    "nat" => Forward::Nat,
                    "route" => Forward::Route,
                    "isolated" | "none" => Forward::Isolated,
                    _ => return Err(value(key, text, "one of nat, route, isolated")),
                }
            }
            "address" => {
                let wrong = || {
                    value(
                        key,
                        text,
                        "an IPv4 address with a prefix, such as 192.168.77.1/24",
                    )
                };
                let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
                self.address = address.parse().map_err(|_| wrong())?;
                self.prefix = prefix.parse().map_err(|_| wrong())?;
            }
            _ => {
                self.dhcp = match text {
                    "auto" => Dhcp::Auto,
                    "none" => Dhcp::None,
                    _ => {
                        let wrong = || value("dhcp", text, "FIRST-LAST, auto or none");
                        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
                        let from = from.parse().map_err(|_| wrong())?;
                        Dhcp::Range(from, to.parse().map_err(|_| wrong())?)
                    }
                }
            }
        }
        Ok(())
    }

    /// First and last address of the network, both of which no machine can have.
    fn ends(&self) -> (u32, u32) {
        let mask = mask(self.prefix);
        let network = self.address.to_bits() & mask;
        (network, network | !mask)
    }

    fn check(&self) -> Result<(), NetworkError> {
        check_name("name", &self.name)?;
        if let Some(bridge) = &self.bridge {
            let right = !bridge.is_empty()
                && bridge.len() <= MAX_INTERFACE
                && bridge
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
                && !matches!(bridge.as_str(), "." | "..");
            if !right {
                let expected = format!("1 to {MAX_INTERFACE} letters, digits, `_`, `.`, `-`");
                return Err(value("bridge", bridge, expected));
            }
        }
        if let Some(domain) = &self.domain {
            let label = |l: &str| {
                !l.is_empty()
                    && l.len() <= 63
                    && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            };
            if domain.len() > 253 || !domain.split('.').all(label) {
                return Err(value("domain", domain, "a DNS name"));
            }
        }
        let shown = || format!("{}/{}", self.address, self.prefix);
        if !(8..=30).contains(&self.prefix) {
            let expected = "a prefix from 8 to 30: a network needs an address for the host and one for a guest";
            return Err(value("address", shown(), expected));
        }
        let address = self.address;
        if address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || address.is_broadcast()
        {
            return Err(value(
                "address",
                shown(),
                "not an address that a machine can have",
            ));
        }
        let (first, last) = self.ends();
        if address.to_bits() == first || address.to_bits() == last {
            let expected = "the first and the last address of a network belong to no machine";
            return Err(value("address", shown(), expected));
        }
        self.range().map(|_| ())
    }

    /// The range that is handed out.
    fn range(&self) -> Result<Option<(Ipv4Addr, Ipv4Addr)>, NetworkError> {
        let (first, last) = self.ends();
        let own = self.address.to_bits();
        match self.dhcp {
            Dhcp::None => Ok(None),
            Dhcp::Auto => {
                let (below, above) = ((first + 1, own - 1), (own + 1, last - 1));
                let size = |r: (u32, u32)| (r.1 + 1).saturating_sub(r.0);
                let (from, to) = if size(above) >= size(below) {
                    above
                } else {
                    below
                };
                if size((from, to)) == 0 {
                    return Err(NetworkError::Full(self.address, self.prefix));
                }
                let to = to.min(from.saturating_add(MAX_RANGE - 1));
                Ok(Some((from.into(), to.into())))
            }
            Dhcp::Range(from, to) => {
                let shown = format!("{from}-{to}");
                let (a, b) = (from.to_bits(), to.to_bits());
                let wrong = if a > b {
                    "the first address is above the last".into()
                } else if a <= first || b >= last {
                    let (low, high) = (Ipv4Addr::from(first + 1), Ipv4Addr::from(last - 1));
                    format!("both must be from {low} to {high}")
                } else if (a..=b).contains(&own) {
                    format!("{} is the host's own address", self.address)
                } else if b - a >= MAX_RANGE {
                    format!("libvirt hands out at most {MAX_RANGE} addresses")
                } else {
                    return Ok(Some((from, to)));
                };
                Err(value("dhcp", shown, wrong))
            }
        }
    }
}

/// A name that libvirt also uses for a file.
pub(super) fn check_name(key: &'static str, name: &str) -> Result<(), NetworkError> {
    if name.is_empty()
        || name.len() > 200
        || name.contains(['/', '\n'])
        || !legal(name)
        || matches!(name, "." | "..")
    {
        let expected = "1 to 200 bytes without `/` and control characters";
        return Err(value(key, name, expected));
    }
    Ok(())
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

/// Writes a network as libvirt's XML.
///
/// # Errors
/// The network cannot be.
pub fn export(spec: &NetworkSpec) -> Result<String, NetworkError> {
    spec.check()?;
    let mut root = Element::new("network");
    root.need("name").text.clone_from(&spec.name);
    match spec.forward {
        Forward::Nat => root.need("forward").set("mode", "nat"),
        Forward::Route => root.need("forward").set("mode", "route"),
        Forward::Isolated => None,
    };
    let mut bridge = Element::new("bridge");
    if let Some(name) = &spec.bridge {
        bridge.set("name", name.as_str());
    }
    root.push(bridge.with("stp", "on").with("delay", "0"));
    if let Some(domain) = &spec.domain {
        root.need("domain").set("name", domain.as_str());
    }
    let netmask = Ipv4Addr::from(mask(spec.prefix));
    let ip = root.need("ip");
    ip.set("address", spec.address.to_string());
    ip.set("netmask", netmask.to_string());
    if let Some((from, to)) = spec.range()? {
        let range = Element::new("range").with("start", from.to_string());
        ip.need("dhcp").push(range.with("end", to.to_string()));
    }
    Ok(root.write())
}
