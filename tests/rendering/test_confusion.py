import torch

from sinelr_lightning.rendering import confusion_picture


def test_cells_are_shaded_by_their_share_of_the_row():
    counts = torch.zeros(30, 30, dtype=torch.long)
    counts[0, 0], counts[0, 1], counts[1, 0] = 3, 1, 7
    picture = confusion_picture(counts, [str(i) for i in range(30)])
    side = 640 // 30
    assert picture.shape == (30 * side, 30 * side, 3) and picture.dtype == torch.uint8
    full, white = torch.tensor([28, 92, 171]), torch.tensor([255, 255, 255])

    def cell(i, j):
        return picture[i * side + side // 2, j * side + side // 2].long()

    assert (cell(1, 0) == full).all() and (cell(1, 1) == white).all()  # row 1 is all in column 0
    assert (cell(0, 0) - (white + 0.75 * (full - white))).abs().max() <= 1
    assert (cell(2, 2) == white).all()  # a class without samples


def test_few_classes_are_named_and_counted():
    counts = torch.diag(torch.tensor([5, 6, 7]))
    short = confusion_picture(counts, ["a", "b", "c"])
    long = confusion_picture(counts, ["a class with a long name", "b", "c"])
    assert long.shape[1] > short.shape[1] and short.shape[2] == 3
    plain = confusion_picture(torch.zeros(3, 3), ["a", "b", "c"])
    assert (short != plain).any()
