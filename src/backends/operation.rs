/// The methods of [`super::Backend`] that reach the place; a label of metrics
/// and the handle by which tests inject faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `put`
    Put,
    /// `put_many`
    PutMany,
    /// `get`
    Get,
    /// `presence`
    Presence,
    /// `delete`
    Delete,
    /// `delete_many`
    DeleteMany,
    /// `list`
    List,
    /// `put_name`
    PutName,
    /// `names`
    Names,
    /// `delete_name`
    DeleteName,
    /// `usage`
    Usage,
    /// `probe`
    Probe,
    /// `compact`
    Compact,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Put,
        Self::PutMany,
        Self::Get,
        Self::Presence,
        Self::Delete,
        Self::DeleteMany,
        Self::List,
        Self::PutName,
        Self::Names,
        Self::DeleteName,
        Self::Usage,
        Self::Probe,
        Self::Compact,
    ];

    /// The method's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::PutMany => "put_many",
            Self::Get => "get",
            Self::Presence => "presence",
            Self::Delete => "delete",
            Self::DeleteMany => "delete_many",
            Self::List => "list",
            Self::PutName => "put_name",
            Self::Names => "names",
            Self::DeleteName => "delete_name",
            Self::Usage => "usage",
            Self::Probe => "probe",
            Self::Compact => "compact",
        }
    }

    /// Whether it changes the place.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(
            self,
            Self::Put
                | Self::PutMany
                | Self::Delete
                | Self::DeleteMany
                | Self::PutName
                | Self::DeleteName
                | Self::Compact
        )
    }
}
