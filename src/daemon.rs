//! Puts the layers together into a volume and runs it.
