//! From a disk of a [`crate::domain::Domain`] to the image that it is to have.

#![forbid(unsafe_code)]

use serde_json::Value;

use super::{
    CompressionType, Encryption, ImageFormat, ImageSpec, Preallocation, Remark, SecretSource,
};

impl ImageSpec {
    /// The image that a member of `disks` asks for: `None` when it has no `path` or no `size`, which is a disk that
    /// must exist already.
    ///
    /// # Errors
    /// A format or a word that nothing can be made of.
    pub fn of_disk(disk: &Value) -> Result<Option<Self>, Remark> {
        let text = |key: &str| disk.get(key).and_then(Value::as_str);
        let number = |key: &str| disk.get(key).and_then(Value::as_u64);
        let (Some(path), Some(size)) = (text("path"), number("size")) else {
            return Ok(None);
        };
        let format = word(disk, "format", ImageFormat::WORDS, ImageFormat::parse)?;
        let preallocation = word(
            disk,
            "preallocation",
            Preallocation::WORDS,
            Preallocation::parse,
        )?;
        let encryption = word(disk, "encryption", Encryption::WORDS, Encryption::parse)?;
        Ok(Some(Self {
            preallocation: preallocation.unwrap_or(Preallocation::Off),
            cluster_size: number("cluster_size"),
            lazy_refcounts: disk.get("lazy_refcounts").and_then(Value::as_bool),
            compression_type: word(
                disk,
                "compression_type",
                CompressionType::WORDS,
                CompressionType::parse,
            )?,
            encryption: encryption.unwrap_or(Encryption::None),
            secret: SecretSource::of_disk(disk)?,
            ..Self::new(path, format.unwrap_or(ImageFormat::Raw), size)
        }))
    }
}

fn word<T>(
    disk: &Value,
    key: &'static str,
    words: &[&str],
    parse: fn(&str) -> Option<T>,
) -> Result<Option<T>, Remark> {
    let Some(text) = disk.get(key).and_then(Value::as_str) else {
        return Ok(None);
    };
    parse(text).map(Some).ok_or_else(|| {
        let said = crate::diag::quoted(text);
        Remark::error(
            "E-DISK-OPTION",
            key,
            format!("No image with {key} {said} can be made here"),
            &format!(
                "Choose one of {}, or make the image by other means",
                words.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_with_a_size_is_an_image_to_make() {
        let all = json!({
            "path": "/d", "size": 1u64 << 30, "format": "qcow2", "bus": "virtio", "preallocation": "metadata",
            "cluster_size": 1 << 20, "lazy_refcounts": true, "compression_type": "zstd", "encryption": "luks",
            "secret_file": "/key",
        });
        let spec = ImageSpec::of_disk(&all).unwrap().unwrap();
        assert_eq!((spec.path, spec.size), ("/d".into(), 1 << 30));
        assert_eq!(
            (spec.format, spec.preallocation),
            (ImageFormat::Qcow2, Preallocation::Metadata)
        );
        assert_eq!(
            (spec.cluster_size, spec.lazy_refcounts),
            (Some(1 << 20), Some(true))
        );
        assert_eq!(spec.compression_type, Some(CompressionType::Zstd));
        assert_eq!(spec.encryption, Encryption::Luks);
        assert!(matches!(spec.secret, Some(SecretSource::File(f)) if f.ends_with("key")));

        let spec = ImageSpec::of_disk(&json!({"path": "/d", "size": 512}))
            .unwrap()
            .unwrap();
        assert_eq!(
            (spec.format, spec.cluster_size, spec.lazy_refcounts),
            (ImageFormat::Raw, None, None)
        );
        assert!(spec.secret.is_none() && spec.encryption == Encryption::None);
        for disk in [
            json!({"path": "/d"}),
            json!({"size": 512}),
            json!({"path": "/d", "size": null}),
        ] {
            assert!(ImageSpec::of_disk(&disk).unwrap().is_none(), "{disk}");
        }
        for key in ["format", "preallocation", "compression_type", "encryption"] {
            let disk = json!({"path": "/d", "size": 512, key: "vmdk"});
            assert_eq!(ImageSpec::of_disk(&disk).unwrap_err().key, key);
        }
    }
}
