//! Passphrases of disks, which libvirt keeps. They reach it through standard input only.

#![forbid(unsafe_code)]

use super::{Virsh, VirshError};
use crate::xml::Element;

impl Virsh {
    /// Whether libvirt has a secret of this identity.
    ///
    /// # Errors
    /// [`VirshError`].
    pub fn has_secret(&self, uuid: &str) -> Result<bool, VirshError> {
        let table = self.run(&["secret-list"], None)?.stdout;
        let mut first = table.lines().filter_map(|l| l.split_whitespace().next());
        Ok(first.any(|known| known.eq_ignore_ascii_case(uuid)))
    }

    /// Gives libvirt the passphrase of a disk's image, to be kept and never told again.
    ///
    /// # Errors
    /// [`VirshError`]; libvirt has no such secret then.
    pub fn give_secret(
        &self,
        uuid: &str,
        image: &str,
        passphrase: &[u8],
    ) -> Result<(), VirshError> {
        let mut secret = Element::new("secret")
            .with("ephemeral", "no")
            .with("private", "yes");
        secret.push(text("uuid", uuid));
        let usage = secret.push(Element::new("usage").with("type", "volume"));
        usage.push(text("volume", image));
        let xml = secret.write();
        self.run(&["secret-define", "/dev/stdin"], Some(xml.as_bytes()))?;
        // As it is, not encoded: `--plain` (libvirt 6.2).
        let words = ["secret-set-value", uuid, "--file", "/dev/stdin", "--plain"];
        let set = self.run(&words, Some(passphrase));
        if set.is_err() {
            // The first error is the one to tell.
            let _ = self.run(&["secret-undefine", uuid], None);
        }
        set.map(drop)
    }
}

fn text(name: &str, text: &str) -> Element {
    let mut element = Element::new(name);
    text.clone_into(&mut element.text);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"
echo "$0 $*" >>words
case $0 in
secret-list) echo " UUID   Usage"; echo "-----"; cat list 2>/dev/null || true ;;
secret-define) cat >defined ;;
secret-set-value)
    [ ! -e refuse ] || { echo "error: no keyring" >&2; exit 1; }
    cat >value ;;
esac
"#;

    #[test]
    fn a_passphrase_goes_through_standard_input() {
        let dir = std::env::temp_dir().join(format!("vsc-secrets-{}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("virsh"), SCRIPT).unwrap();
        let file = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let url = format!("cd {} && . ./virsh", dir.display());
        let virsh = Virsh::new(url).program("/bin/sh");
        let uuid = "6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b";
        assert!(!virsh.has_secret(uuid).unwrap());
        std::fs::write(
            dir.join("list"),
            format!(" {}   volume /d\n", uuid.to_uppercase()),
        )
        .unwrap();
        assert!(virsh.has_secret(uuid).unwrap());
        virsh.give_secret(uuid, "/d<&>", b"ge\"heim\n ").unwrap();
        assert_eq!(file("value"), "ge\"heim\n ");
        let defined = file("defined");
        assert!(
            defined.contains("<volume>/d&lt;&amp;&gt;</volume>") && defined.contains(uuid),
            "{defined}"
        );
        assert!(!file("words").contains("heim") && !file("words").contains("undefine"));
        std::fs::write(dir.join("refuse"), "").unwrap();
        let refused = virsh.give_secret(uuid, "/d", b"x").unwrap_err().to_string();
        assert!(refused.contains("no keyring"), "{refused}");
        assert!(file("words").ends_with(&format!("secret-undefine {uuid}\n")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
