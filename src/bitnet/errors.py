"""What can go wrong, as types.

BitNetError
├── ModelError             the model cannot be opened                      exit code 3
│   ├── FormatError        the file is damaged or not what it claims to be
│   ├── UnsupportedError   the file is sound, but this is not supported (yet)
│   └── ShapeError         a tensor is missing or has another shape than the configuration says
├── ParameterError         an argument is out of range or of the wrong kind  exit code 2
│   └── ContextError       the prompt does not fit into the context
├── HubError               a model cannot be fetched by its name           exit code 1
│   ├── OfflineError       there is no network, or it must not be used
│   ├── NotFoundError      there is no such repository, or nothing of that name in it
│   ├── AccessError        the repository wants a login, or consent to its terms
│   ├── RateLimitError     the hub has had too many requests
│   └── DownloadError      what came is cut short, or not what was announced
├── ScrapeError            a server that is watched does not answer        exit code 1
└── ResourceError          not enough memory or processors for what was asked  exit code 1
"""


class BitNetError(Exception):
    """Base of every error that bitnet raises on purpose.

    `message` says what was found and what was expected; `hint`, when given, says what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


class ModelError(BitNetError):
    exit_code = 3


class FormatError(ModelError):
    pass


class UnsupportedError(ModelError):
    pass


class ShapeError(ModelError):
    pass


class ParameterError(BitNetError, ValueError):
    exit_code = 2


class ContextError(ParameterError):
    pass


class HubError(BitNetError):
    pass


class OfflineError(HubError):
    pass


class NotFoundError(HubError):
    pass


class AccessError(HubError):
    pass


class RateLimitError(HubError):
    pass


class DownloadError(HubError):
    pass


class ScrapeError(BitNetError):
    pass


class ResourceError(BitNetError):
    pass
