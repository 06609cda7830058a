//! `virthosts.yaml`, read.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Certificate, Host};
use crate::diag::{Diagnostic, Diagnostics, Severity, Sources, Span, Spanned, quoted, shown};
use crate::facts::Root;
use crate::scenario::suggest::nearest;
use crate::scenario::value::{self, Base};
use crate::scenario::yaml::{self, Node, Value};

const EXAMPLE: &str = "For example `localhost: {url: \"qemu:///system\"}`";
const KEYS: [&str; 2] = ["url", "sev-cert"];

/// The hypervisors of a list, and what there is to say about it besides `notes`.
pub(super) fn read(
    file: &Path,
    content: Result<Vec<u8>, String>,
    home: Option<PathBuf>,
    root: &Root,
    notes: Vec<Diagnostic>,
) -> Result<(Vec<Host>, Diagnostics), Diagnostics> {
    let mut sources = Sources::default();
    let mut problems = notes;
    let mut list = Vec::new();
    let name = file.display().to_string();
    match content.map(|bytes| yaml::decode(&bytes)) {
        Err(why) => {
            let message = format!(
                "The list of hypervisors {} cannot be read: {why}",
                shown(&name)
            );
            problems.push(Diagnostic::error("E-HOSTS", Span::NONE, message));
        }
        Ok(Err((text, problem))) => {
            problems.push(problem.diagnostic(sources.add_file(&name, text)));
        }
        Ok(Ok(text)) => {
            let source = sources.add_file(&name, text.clone());
            let base = Base {
                dir: value::directory_of(file),
                home,
            };
            if let Some(node) = yaml::parse(&text, source, 0, &mut problems) {
                let mut reader = Reader {
                    base: &base,
                    root,
                    problems: &mut problems,
                };
                list = reader.hosts(&node);
            }
        }
    }
    let failed = problems.iter().any(|d| d.severity == Severity::Error);
    let messages = Diagnostics::new(problems, Arc::new(sources));
    match failed {
        true => Err(messages),
        false => Ok((list, messages)),
    }
}

struct Reader<'a> {
    base: &'a Base,
    root: &'a Root,
    problems: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn hosts(&mut self, node: &Node) -> Vec<Host> {
        let pairs = match &node.value {
            Value::Map(pairs) if !pairs.is_empty() => pairs,
            Value::Map(_) | Value::Null => {
                let message = "There is no hypervisor in this list";
                let d = Diagnostic::error("E-HOSTS-EMPTY", node.span.part(0, 0), message);
                self.problems.push(d.help(format!(
                    "{EXAMPLE}; without the file there is one hypervisor, localhost"
                )));
                return Vec::new();
            }
            _ => {
                let message = format!(
                    "A list of hypervisors is a map of their names, and this is {}",
                    node.kind()
                );
                self.error("E-TYPE", node.span, message);
                return Vec::new();
            }
        };
        let mut list = Vec::with_capacity(pairs.len());
        for (name, node) in pairs.iter() {
            if name.value.is_empty() || name.value.chars().any(char::is_control) {
                let message = format!("{} is no name for a hypervisor", quoted(&name.value));
                self.error("E-VALUE", name.span, message);
                continue;
            }
            list.extend(self.host(name, node));
        }
        list
    }

    fn error(&mut self, code: &'static str, span: Span, message: impl Into<String>) {
        self.problems
            .push(Diagnostic::error(code, span, message).help(EXAMPLE));
    }

    fn host(&mut self, name: &Spanned<Arc<str>>, node: &Node) -> Option<Host> {
        let nothing = Arc::default();
        let pairs = match &node.value {
            Value::Map(pairs) => pairs,
            Value::Null => &nothing,
            _ => {
                let message = format!(
                    "The hypervisor {} is a map of keys, not {}",
                    quoted(&name.value),
                    node.kind()
                );
                self.error("E-TYPE", node.span, message);
                return None;
            }
        };
        let mut url = None;
        let mut certificate = Certificate::None;
        for (key, node) in pairs.iter() {
            match &*key.value {
                "url" => url = self.url(key, node),
                "sev-cert" => certificate = self.certificate(key, node),
                other => {
                    let message = format!("A hypervisor has no key {}", quoted(other));
                    let mut d = Diagnostic::warning("W-HOSTS-UNKNOWN", key.span, message);
                    if let Some(near) = nearest(other, KEYS) {
                        d = d.label(format!("did you mean `{near}`?"));
                    }
                    self.problems
                        .push(d.help(format!("Its keys are {}", KEYS.join(" and "))));
                }
            }
        }
        if url.is_none() && !pairs.iter().any(|(key, _)| &*key.value == "url") {
            let message = format!("The hypervisor {} has no url", quoted(&name.value));
            let d = Diagnostic::warning("W-HOSTS-URL", name.span, message);
            self.problems.push(
                d.why("nothing can be run there: libvirt would take its own default in its place")
                    .help(EXAMPLE),
            );
        }
        Some(Host {
            name: name.value.to_string(),
            url,
            certificate,
        })
    }

    fn text<'n>(&mut self, key: &Spanned<Arc<str>>, node: &'n Node) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, .. } if !text.chars().any(char::is_control) => {
                return Some(text);
            }
            Value::Scalar { text, .. } => {
                let message = format!("{} is no value for `{}`", quoted(text), key.value);
                self.error("E-VALUE", node.span, message);
            }
            Value::Null => {
                let message = format!("`{}` has no value", key.value);
                self.error("E-TYPE", key.span, message);
            }
            _ => {
                let message = format!("`{}` is a single value, not {}", key.value, node.kind());
                self.error("E-TYPE", node.span, message);
            }
        }
        None
    }

    fn url(&mut self, key: &Spanned<Arc<str>>, node: &Node) -> Option<String> {
        let text = self.text(key, node)?;
        // libvirt's addresses, and the aliases that libvirt.conf may have for them.
        let alias = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let valid = !text.contains(char::is_whitespace)
            && match text.split_once("://") {
                Some((driver, _)) => {
                    driver.starts_with(|c: char| c.is_ascii_alphabetic())
                        && driver
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || c == '+')
                }
                None => {
                    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(alias)
                }
            };
        if !valid {
            let message = format!("{} is no address of a hypervisor", quoted(text));
            self.error("E-VALUE", node.span, message);
            return None;
        }
        Some(text.to_owned())
    }

    fn certificate(&mut self, key: &Spanned<Arc<str>>, node: &Node) -> Certificate {
        let Some(text) = self.text(key, node) else {
            return Certificate::None;
        };
        match value::path(text, self.base) {
            Err(fault) => {
                let message = format!(
                    "{} is no value for `sev-cert`: {}",
                    quoted(text),
                    fault.message
                );
                self.error("E-VALUE", node.span, message);
                Certificate::None
            }
            Ok(path) => {
                let place = match path.is_absolute() {
                    true => self.root.at(&path),
                    false => path.clone(),
                };
                match fs::metadata(place).is_ok_and(|m| m.is_file()) {
                    true => Certificate::Present(path),
                    false => Certificate::Missing(path),
                }
            }
        }
    }
}
