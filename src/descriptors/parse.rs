//! From a descriptor's text to a [`Descriptor`]. Of the specification's fields `description` and `tags` say nothing to
//! programs and are not looked at.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Descriptor, Device, Feature, Format, Image, Interface, Mode, Target};
use crate::diag::shown;

/// Why a text is no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Longer than [`super::MAX_BYTES`].
    #[error("longer than 1 MiB, which no descriptor is")]
    TooLarge,
    /// Not UTF-8.
    #[error("not UTF-8 text")]
    NotText,
    /// Not JSON, in the parser's words.
    #[error("not valid JSON: {0}")]
    Json(String),
    /// JSON of another type.
    #[error("not a JSON object")]
    NotObject,
    /// A field that is not there.
    #[error("lacks `{0}`")]
    Lacks(String),
    /// A field of another type.
    #[error("`{field}` is not {wanted}")]
    Type {
        /// The field, by its path.
        field: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A word that means nothing.
    #[error("`{field}` is `{}`, which is not one of {}", shown(.word), .known.join(", "))]
    Word {
        /// The field, by its path.
        field: String,
        /// The word.
        word: String,
        /// Words that mean something.
        known: &'static [&'static str],
    },
    /// A path that names no file whatever the working directory is.
    #[error("`{field}` is `{}`, which is not an absolute path", shown(.path))]
    Path {
        /// The field, by its path.
        field: String,
        /// Its value.
        path: String,
    },
    /// A list with nothing in it.
    #[error("`{0}` is empty")]
    Empty(String),
}

/// Reads a descriptor. Images are not looked for.
pub(super) fn descriptor(file: &Path, text: &str) -> Result<Descriptor, Invalid> {
    let json: Value = serde_json::from_str(text).map_err(|e| Invalid::Json(e.to_string()))?;
    let root = Object::of(&json, "")?;
    let interfaces = root.words("interface-types")?;
    if interfaces.is_empty() {
        return Err(Invalid::Empty("interface-types".into()));
    }
    let mapping = root.object("mapping")?;
    let device = mapping.word("device", Device::from_word, Device::KNOWN)?;
    let (mode, executable, nvram_template) = match device {
        Device::Flash => {
            let mode = match mapping.has("mode") {
                // Descriptors from before QEMU 7.0 have none.
                false => Mode::Split,
                true => mapping.word("mode", Mode::from_word, Mode::KNOWN)?,
            };
            let template = match mode {
                Mode::Split => Some(mapping.object("nvram-template")?.image()?),
                Mode::Combined | Mode::Stateless => None,
            };
            (Some(mode), mapping.object("executable")?.image()?, template)
        }
        Device::Kernel | Device::Memory => {
            let path = mapping.path("filename")?;
            let format = Format::Raw;
            (None, Image { path, format }, None)
        }
    };
    let targets = root.list("targets")?.iter().enumerate();
    let targets = targets.map(|(n, target)| {
        let target = Object::of(target, &format!("targets[{n}]"))?;
        Ok(Target {
            architecture: target.text("architecture")?.to_owned(),
            machines: target
                .words("machines")?
                .into_iter()
                .map(str::to_owned)
                .collect(),
        })
    });
    Ok(Descriptor {
        file: file.to_owned(),
        interfaces: interfaces.into_iter().map(Interface::from).collect(),
        device,
        mode,
        executable,
        nvram_template,
        targets: targets.collect::<Result<_, _>>()?,
        features: root
            .words("features")?
            .into_iter()
            .map(Feature::from)
            .collect(),
        missing: Vec::new(),
    })
}

/// An object, and where it is.
struct Object<'a> {
    fields: &'a Map<String, Value>,
    place: String,
}

impl<'a> Object<'a> {
    fn of(value: &'a Value, place: &str) -> Result<Self, Invalid> {
        let fields = value.as_object().ok_or_else(|| match place {
            "" => Invalid::NotObject,
            field => Invalid::Type {
                field: field.into(),
                wanted: "an object",
            },
        })?;
        Ok(Object {
            fields,
            place: place.to_owned(),
        })
    }

    fn name(&self, field: &str) -> String {
        if self.place.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.place)
        }
    }

    fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    fn get(&self, field: &str) -> Result<&'a Value, Invalid> {
        self.fields
            .get(field)
            .ok_or_else(|| Invalid::Lacks(self.name(field)))
    }

    fn object(&self, field: &str) -> Result<Object<'a>, Invalid> {
        Object::of(self.get(field)?, &self.name(field))
    }

    fn list(&self, field: &str) -> Result<&'a [Value], Invalid> {
        let list = self.get(field)?.as_array();
        list.map(Vec::as_slice)
            .ok_or_else(|| self.not(field, "a list"))
    }

    fn text(&self, field: &str) -> Result<&'a str, Invalid> {
        self.get(field)?
            .as_str()
            .ok_or_else(|| self.not(field, "text"))
    }

    fn words(&self, field: &str) -> Result<Vec<&'a str>, Invalid> {
        let words = self.list(field)?.iter().map(Value::as_str);
        words
            .collect::<Option<_>>()
            .ok_or_else(|| self.not(field, "a list of words"))
    }

    fn word<T>(
        &self,
        field: &str,
        parse: impl Fn(&str) -> Option<T>,
        known: &'static [&'static str],
    ) -> Result<T, Invalid> {
        let word = self.text(field)?;
        parse(word).ok_or_else(|| Invalid::Word {
            field: self.name(field),
            word: word.to_owned(),
            known,
        })
    }

    /// An absolute path. One with control characters could not be printed as a line.
    fn path(&self, field: &str) -> Result<PathBuf, Invalid> {
        let path = self.text(field)?;
        if !path.starts_with('/') || path.contains(char::is_control) {
            return Err(Invalid::Path {
                field: self.name(field),
                path: path.to_owned(),
            });
        }
        Ok(path.into())
    }

    fn image(&self) -> Result<Image, Invalid> {
        Ok(Image {
            path: self.path("filename")?,
            format: self.word("format", Format::from_word, Format::KNOWN)?,
        })
    }

    fn not(&self, field: &str, wanted: &'static str) -> Invalid {
        Invalid::Type {
            field: self.name(field),
            wanted,
        }
    }
}
