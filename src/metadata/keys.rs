//! Keys, in bytes. Big-endian numbers keep ranges together.
