#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::ELF;
use super::spec::{End, LIMIT, MAGIC, Module, Root, Spec, SpecError, Stdio};

fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=255_u8, 0..40)
}

fn specs() -> impl Strategy<Value = Spec> {
    let module = (text(), text()).prop_map(|(path, options)| Module { path, options });
    let root = (text(), text(), text()).prop_map(|(device, fstype, options)| Root {
        device,
        fstype,
        options,
    });
    let stdio = prop_oneof![
        Just(Stdio::Auto),
        Just(Stdio::Pipes),
        Just(Stdio::Terminal),
        Just(Stdio::Console)
    ];
    let end = prop_oneof![Just(End::PowerOff), Just(End::Restart)];
    (
        (vec(text(), 0..5), vec(text(), 0..5), text(), text(), text()),
        (stdio, any::<u32>(), any::<u32>(), vec(module, 0..5)),
        (option::of(root), end, any::<bool>(), any::<u32>()),
    )
        .prop_map(
            |(
                (argv, env, cwd, hostname, tty),
                (stdio, rows, columns, modules),
                (root, end, channel, wait_ms),
            )| Spec {
                argv,
                env,
                cwd,
                hostname,
                stdio,
                tty,
                rows,
                columns,
                modules,
                root,
                end,
                channel,
                wait_ms,
            },
        )
}

proptest! {
    #[test]
    fn decoding_gives_back_what_was_encoded(spec in specs()) {
        let bytes = spec.encode().unwrap();
        prop_assert_eq!(Spec::decode(&bytes), Ok(spec));
    }

    #[test]
    fn a_shortened_or_lengthened_encoding_is_refused(spec in specs(), cut in any::<prop::sample::Index>()) {
        let mut bytes = spec.encode().unwrap();
        prop_assert!(Spec::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert_eq!(Spec::decode(&bytes), Err(SpecError::Length));
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in vec(any::<u8>(), 0..300)) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(body);
        if let Ok(spec) = Spec::decode(&bytes) {
            prop_assert_eq!(spec.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn one_changed_byte_is_refused_or_read_as_another_spec(
        spec in specs(), at in any::<prop::sample::Index>(), flip in 1..=255_u8
    ) {
        let mut bytes = spec.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = Spec::decode(&bytes) {
            prop_assert_ne!(&other, &spec);
            prop_assert_eq!(other.encode().unwrap(), bytes);
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(Spec::decode(b"no"), Err(SpecError::Magic));
    let spec = Spec {
        argv: vec![b"a\0b".to_vec()],
        ..Spec::default()
    };
    assert_eq!(spec.encode(), Err(SpecError::Nul));
    let spec = Spec {
        env: vec![vec![b'x'; LIMIT]],
        ..Spec::default()
    };
    assert_eq!(spec.encode(), Err(SpecError::Limit));
    let mut bytes = Spec::default().encode().unwrap();
    bytes[8] = 9;
    assert_eq!(Spec::decode(&bytes), Err(SpecError::Version(9)));
}

#[test]
fn the_program_is_small_static_and_needs_nothing() {
    assert!(ELF.len() < 64 << 10, "{} bytes", ELF.len());
    assert_eq!(&ELF[..4], b"\x7fELF");
    let half = |at: usize| usize::from(u16::from_le_bytes([ELF[at], ELF[at + 1]]));
    assert_eq!(half(16), 2, "ET_EXEC");
    assert_eq!(half(18), 62, "EM_X86_64");
    let (offset, size, count) = (half(32), half(54), half(56));
    assert!(count > 0);
    for header in 0..count {
        let kind = half(offset + header * size);
        assert!(
            kind != 2 && kind != 3,
            "PT_DYNAMIC or PT_INTERP in header {header}"
        );
    }
}
