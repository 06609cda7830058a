//! Devices at fixed ports that every PC has had.
