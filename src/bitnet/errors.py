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
├── DeviceError            a GPU is missing, too old, or has failed        exit code 1
└── ResourceError          not enough memory or processors for what was asked  exit code 1
"""

LONGEST = 2000  # characters of a message


class BitNetError(Exception):
    """Base of every error that bitnet raises on purpose.

    `message` says what was found and what was expected; `hint`, when given, says what to do next. Files and requests
    are quoted in them, so what is too long is cut, and what a terminal would obey is escaped.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = readable(message), readable(hint)
        super().__init__(f"{self.message}\n{self.hint}" if hint else self.message)


def readable(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


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


class DeviceError(BitNetError):
    pass


class ResourceError(BitNetError):
    pass
