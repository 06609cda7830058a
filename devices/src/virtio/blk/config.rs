//! Features and configuration space of a disk (VIRTIO 5.2.3, 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::request::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR};
use super::spec::{BlkSpec, Discard};
use crate::block::Geometry;
use crate::virtio::ConfigSpace;

/// Bytes of `struct virtio_blk_config` up to the secure erase fields, whose feature is not offered.
const LENGTH: usize = 0x3c;
/// Offset of `writeback`, the one field that the driver may write.
pub(super) const WRITEBACK: usize = 0x20;

pub(super) fn features(spec: &BlkSpec, geometry: &Geometry) -> u64 {
    let always = [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
    ];
    let mut bits = always.iter().fold(0, |bits, bit| bits | 1 << bit);
    let mut add = |bit: u32| bits |= 1 << bit;
    if geometry.read_only {
        add(VIRTIO_BLK_F_RO);
    } else {
        add(VIRTIO_BLK_F_FLUSH);
        add(VIRTIO_BLK_F_CONFIG_WCE);
        add(VIRTIO_BLK_F_WRITE_ZEROES);
        if spec.discard == Discard::Unmap {
            add(VIRTIO_BLK_F_DISCARD);
        }
    }
    if spec.num_queues > 1 {
        add(VIRTIO_BLK_F_MQ);
    }
    bits
}

pub(super) fn space(spec: &BlkSpec, geometry: &Geometry) -> ConfigSpace {
    let block = spec.logical_block_size;
    let physical = geometry.physical_block.max(block);
    let in_blocks = |bytes: u32| bytes / block;
    let granularity = geometry.discard_granularity.max(block);
    // Powers of two, so the difference of their logarithms is exact and small.
    let exponent = (physical / block).trailing_zeros() as u8;
    let minimum = u16::try_from(in_blocks(physical)).unwrap_or(0);
    let unmap = u8::from(spec.discard == Discard::Unmap);

    let mut bytes = [0; LENGTH];
    let mut put = |at: usize, field: &[u8]| {
        for (byte, &value) in bytes.iter_mut().skip(at).zip(field) {
            *byte = value;
        }
    };
    put(0x00, &(geometry.size / SECTOR).to_le_bytes());
    put(0x0c, &u32::from(spec.seg_max()).to_le_bytes());
    put(0x14, &block.to_le_bytes());
    put(0x18, &[exponent, 0]);
    put(0x1a, &minimum.to_le_bytes());
    put(0x1c, &in_blocks(geometry.optimal_io).to_le_bytes());
    put(WRITEBACK, &[u8::from(spec.policy().writeback)]);
    put(0x22, &spec.num_queues.to_le_bytes());
    if !geometry.read_only {
        if unmap == 1 {
            put(0x24, &RANGE_SECTORS_MAX.to_le_bytes());
            put(0x28, &(RANGES_MAX as u32).to_le_bytes());
            put(0x2c, &(granularity / SECTOR as u32).to_le_bytes());
        }
        put(0x30, &RANGE_SECTORS_MAX.to_le_bytes());
        put(0x34, &(RANGES_MAX as u32).to_le_bytes());
        put(0x38, &[unmap]);
    }
    ConfigSpace::new(&bytes, WRITEBACK..WRITEBACK + 1)
}
